"""What the records mean: records and a grid in, planes, a region and a report out."""
