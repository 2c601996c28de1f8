"""`tf.estimator` on today's TensorFlow, which has none: models as functions, with checkpoints."""

from homeostat.tf1.estimator import inputs as inputs
from homeostat.tf1.estimator.estimator import Estimator as Estimator
from homeostat.tf1.estimator.modes import ModeKeys as ModeKeys
from homeostat.tf1.estimator.run_config import RunConfig as RunConfig
from homeostat.tf1.estimator.schedule import EvalSpec as EvalSpec
from homeostat.tf1.estimator.schedule import TrainSpec as TrainSpec
from homeostat.tf1.estimator.schedule import train_and_evaluate as train_and_evaluate
from homeostat.tf1.estimator.specs import EstimatorSpec as EstimatorSpec
