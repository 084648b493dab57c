"""The registered form of a bundle: ``mlflow.pyfunc.load_model("models:/NAME@champion")``.

Input: a data frame with the columns the bundle names as ``input_columns``, each cell a list on the
dataset's grid. Output: a data frame of the predictor's columns.
"""

from __future__ import annotations

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

from skyray.bundles.bundle import Predictor


class BundleModel(PythonModel):
    """A bundle behind MLflow's pyfunc interface."""

    def load_context(self, context) -> None:
        self._predictor = Predictor.from_bundle(context.artifacts["bundle"])

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        columns = {
            name: np.stack([np.asarray(cell) for cell in model_input[name]])
            for name in self._predictor.family.columns(training=False)
        }
        return pd.DataFrame(self._predictor.predict(columns))


mlflow.models.set_model(BundleModel())
