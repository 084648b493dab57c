"""Survey files → records. No Ray, MLflow or HTTP here."""
