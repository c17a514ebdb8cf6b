"""What the words after `python -m sweep` do: one function each, from arguments to an exit code."""
