"""Public benchmarks on a trained model: how they are asked, what each item scored, and how they are averaged."""
