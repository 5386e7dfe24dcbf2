"""Why an add is no residual connection: the names that a user sees, and what each means."""

from __future__ import annotations

BROADCAST = "broadcast"
BIAS = "bias"
NOT_FLOAT = "not-float"
UNUSED = "unused"
INSIDE_NORM = "inside-norm"
NO_SKIP = "no-skip"
NO_WEIGHTED_OP = "no-weighted-op"
BRANCH_USED_ELSEWHERE = "branch-used-elsewhere"
LONG_SKIP = "long-skip"
LOGITS_BIAS = "logits-bias"
GATE = "gate"
SCALED_SKIP = "scaled-skip"
PARALLEL_MAPS = "parallel-maps"
SHARED_MAP = "shared-map"
BRANCH_SUM = "branch-sum"
OTHER_PART = "other-part"
SAME_OPERAND = "same-operand"
CONDITION = "condition"

REASONS = {
    BROADCAST: "the operands have different shapes",
    BIAS: "one operand does not depend on the input: a bias, a mask, a position embedding, an epsilon",
    NOT_FLOAT: "it adds integers: indices or sizes",
    UNUSED: "no output depends on its values: it is dead, or decides only which elements are read",
    INSIDE_NORM: "it belongs to a norm that is written out: an epsilon",
    NO_SKIP: "no operand leads straight back to a value that the other is computed from",
    NO_WEIGHTED_OP: "no weighted operator lies between the fork and the add: arithmetic inside a layer",
    BRANCH_USED_ELSEWHERE: "the branch is read elsewhere too: a position embedding or a mask is added again",
    LONG_SKIP: "the branch comes back from another resolution: a long skip (U-Net, FPN)",
    LOGITS_BIAS: "only a softmax or a choice of the largest reads the sum: a bias on logits",
    GATE: "the branch is the skip itself times a gate, an interpolation with it, or both sides make gates (GRU, LSTM)",
    SCALED_SKIP: "the skip is scaled per channel inside a layer (the D·x of Mamba)",
    PARALLEL_MAPS: "both operands are short linear maps of one value: a re-parameterised sum, a modulation",
    SHARED_MAP: "both operands pass the same weights: one head on two inputs",
    BRANCH_SUM: "it adds branches of one residual connection, or a branch to another",
    OTHER_PART: "the branch is computed from other parts of the value than the skip: a coupling of channels",
    SAME_OPERAND: "it adds a value to itself",
    CONDITION: "one operand is a condition that is added in every layer: edge features, time embeddings, an input",
}
"""Every reason a :class:`~laurel_graph.detection.Rejected` may carry, with what it means."""

NEAR = {
    LONG_SKIP: 0.9,
    GATE: 0.8,
    PARALLEL_MAPS: 0.75,
    SCALED_SKIP: 0.7,
    SHARED_MAP: 0.65,
    BRANCH_USED_ELSEWHERE: 0.6,
    CONDITION: 0.6,
    BRANCH_SUM: 0.6,
    OTHER_PART: 0.6,
    LOGITS_BIAS: 0.5,
    NO_WEIGHTED_OP: 0.4,
    NO_SKIP: 0.2,
    BROADCAST: 0.15,
    SAME_OPERAND: 0.1,
}
"""How near a miss each reason is; 0 where it is not listed."""
