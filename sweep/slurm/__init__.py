"""Workers on a SLURM cluster: submitted, left alone, and found again from files and one squeue."""
