"""What to try next: records as Optuna studies, samplers over the plane, and when to stop."""
