"""Pure functions from record to model input. No Ray, MLflow or HTTP here."""
