"""Many runs: a grid in, records out. Planning imports neither torch nor transformers."""
