from .data.examples import (
    Example as Example,
    load_examples as load_examples,
    read_examples as read_examples,
    to_examples as to_examples,
    write_examples as write_examples,
)
from .data.sampler import Sampling as Sampling
from .finetuning import finetune as finetune, open_retriever as open_retriever
from .mining import (
    Margin as Margin,
    Mined as Mined,
    MiningOptions as MiningOptions,
    MiningReport as MiningReport,
    mine as mine,
    mine_each as mine_each,
    write_mined as write_mined,
)
from .monitoring import Validation as Validation
from .run import TrainingReport as TrainingReport, train as train
from .stages import Stage as Stage, contrastive as contrastive, unified as unified, warm_up as warm_up
from .trainer import TrainConfig as TrainConfig
