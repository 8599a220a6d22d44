"""What the harness is told about this experiment: which numbers, files and advice are ours."""

from harness.runs.experiment import Experiment
from svll.base.run_files import PROMPTS

EXPERIMENT = Experiment(
    metric="validation.mAP",
    columns={"test mAP": "mAP", "test Rank-1": "cmc.1"},
    carried_files=(PROMPTS,),
    advice={
        r"OutOfMemoryError|CUDA out of memory": (
            "the GPU's memory is too small: lower stage2.batch, or use engine.precision=bf16"
        ),
    },
)
