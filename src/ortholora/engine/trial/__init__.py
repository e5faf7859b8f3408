"""Try a model out: whether the rows of every captured layer are the rows of the batch (law 11).

Sizes cannot tell: a dimension may be as long as the batch and be something else, positions or images or labels.
Gradients can. Row r's gradient at the model's output is multiplied by a power of two of its own, and the backward is
linear: at a layer whose rows are the batch's, row r's gradient is multiplied by just that power, exactly, in any
precision. Where it is not, the layer would credit a task with another one's rows.
"""

from ortholora.engine.trial.trial import Trial as Trial
from ortholora.engine.trial.trial import remove_leftover_trials as remove_leftover_trials
