"""Losses: torch's own in every setting, functions and modules of people's own, of models and of steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import layers
import losses
import nets
import sets
import steps
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.brought.case import case, of_pair

WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
CE = nn.CrossEntropyLoss
three, dense = nets.three, nets.Scores
ignored = partial(sets.Cls, ignored=-100)


def of_three(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    """Of an output and two targets."""
    value: Tensor = loss(model(batch[0]), *batch[1:])
    return value


def of_outputs(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    """Of several outputs and the target."""
    value: Tensor = loss(*model(batch[0]), batch[1])
    return value


def of_both(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    """Of two inputs' outputs, and of a third part."""
    value: Tensor = loss(*model(batch[0], batch[1]), *batch[2:])
    return value


def per_sample(forward: Any) -> Any:
    """What an evaluation of a sum is: divided by the samples."""
    return lambda model, batch, loss: forward(model, batch, loss) / len(batch[0])


# ---------------------------------------------------------------------- torch's own

case("torch's: cross entropy", model=three, data=sets.Cls, loss=CE)
case("torch's: labels of -100 in one dimension", model=three, data=ignored, loss=CE)
case("torch's: an ignored class", model=three, data=sets.Cls, loss=partial(CE, ignore_index=0))
case("torch's: class weights", model=three, data=sets.Cls, loss=partial(CE, weight=WEIGHTS))
case("torch's: class weights, some ignored", model=three, data=ignored, loss=partial(CE, weight=WEIGHTS))
case("torch's: label smoothing", model=three, data=sets.Cls, loss=partial(CE, label_smoothing=0.1))
case("torch's: label smoothing, some ignored", model=three, data=ignored, loss=partial(CE, label_smoothing=0.1))
weighted_smoothing = partial(CE, weight=WEIGHTS, label_smoothing=0.1)
case("torch's: label smoothing with class weights", model=three, data=sets.Cls, loss=weighted_smoothing)
case("torch's: smoothing, weights and ignored ones", model=three, data=ignored, loss=weighted_smoothing)
case("torch's: probabilities as targets", model=three, data=sets.Soft, loss=CE)
case("torch's: probabilities with class weights", model=three, data=sets.Soft, loss=partial(CE, weight=WEIGHTS))
case("torch's: dense cross entropy, ends ignored", model=dense, data=sets.Dense, loss=CE)
case("torch's: dense, with class weights", model=dense, data=sets.Dense, loss=partial(CE, weight=WEIGHTS))
case("torch's: dense, nothing ignored", model=dense, data=partial(sets.Dense, ignored=None), loss=CE)
case(
    "torch's: dense, another class ignored",
    model=dense,
    data=partial(sets.Dense, ignored=2),
    loss=partial(CE, ignore_index=2),
)
segments = partial(sets.Pictures, masks=True)
case("torch's: pixels", model=partial(layers.convolutions, masks=True), data=segments, loss=CE)
case("torch's: negative log-likelihood", model=nets.logs, data=ignored, loss=nn.NLLLoss)
case(
    "torch's: negative log-likelihood, weights",
    model=nets.logs,
    data=sets.Cls,
    loss=partial(nn.NLLLoss, weight=WEIGHTS),
)
yes = partial(sets.Soft, kind="yes")
case("torch's: binary cross entropy", model=nets.probabilities, data=yes, loss=nn.BCELoss)
case(
    "torch's: binary, of logits, with weights",
    model=three,
    data=yes,
    loss=partial(nn.BCEWithLogitsLoss, pos_weight=WEIGHTS),
)
case("torch's: mean square", loss=nn.MSELoss)
case("torch's: absolute", loss=nn.L1Loss)
case("torch's: smooth absolute", loss=partial(nn.SmoothL1Loss, beta=0.5))
case("torch's: Huber", loss=partial(nn.HuberLoss, delta=0.5))
case(
    "torch's: Poisson",
    data=sets.Positive,
    loss=partial(nn.PoissonNLLLoss, full=True),
    optimizer=partial(torch.optim.SGD, lr=1e-3),
)
case("torch's: KL, batchmean", model=nets.logs, data=sets.Soft, loss=partial(nn.KLDivLoss, reduction="batchmean"))
case("torch's: KL, mean", model=nets.logs, data=sets.Soft, loss=nn.KLDivLoss)
log_target = partial(nn.KLDivLoss, reduction="batchmean", log_target=True)
case("torch's: KL of logs", model=nets.logs, data=partial(sets.Soft, kind="logs"), loss=log_target)
both = ("batch={inputs: [0, 1], targets: [2], outputs: [0, 1]}",)
case("torch's: cosine of two", *both, model=nets.Twin, data=sets.Signs, loss=nn.CosineEmbeddingLoss, forward=of_both)
case(
    "torch's: ranking",
    *both,
    model=partial(nets.Twin, outputs=1),
    data=sets.Signs,
    loss=losses.ranking,
    forward=of_both,
)
signs = partial(sets.Soft, kind="signs")
case("torch's: hinge", model=three, data=signs, loss=nn.HingeEmbeddingLoss)
case("torch's: soft margin", model=three, data=signs, loss=nn.SoftMarginLoss)
case("torch's: many margins", model=three, data=sets.Cls, loss=nn.MultiMarginLoss)
case("torch's: many margins, weights", model=three, data=sets.Cls, loss=partial(nn.MultiMarginLoss, weight=WEIGHTS))
case("torch's: several labels", model=three, data=sets.Labels, loss=nn.MultiLabelMarginLoss)
case("torch's: several labels, soft", model=three, data=yes, loss=nn.MultiLabelSoftMarginLoss)
case(
    "torch's: triplets",
    "batch={inputs: [0, 1, 2], targets: [], outputs: [0, 1, 2]}",
    model=partial(nets.Twin, outputs=3),
    data=sets.Triplets,
    loss=nn.TripletMarginLoss,
    forward=lambda model, batch, loss: loss(*model(*batch)),
)
case(
    "torch's: Gaussian, in its order",
    "loss={_target_: GaussianNLLLoss, _outputs_: {input: 0, var: 1}, _targets_: {target: 1}}",
    model=partial(nets.Heads, kind="positive"),
    data=sets.Positive,
    loss=None,
    optimizer=partial(torch.optim.SGD, lr=1e-3),
    forward=lambda model, batch, _: F.gaussian_nll_loss(model(batch[0])[0], batch[1], model(batch[0])[1]),
)
case(
    "Gaussian, in an order that is not its own",
    "batch.outputs=[0, 1]",
    model=partial(nets.Heads, kind="positive"),
    data=sets.Positive,
    loss=nn.GaussianNLLLoss,
    worlds=(),
    refused=1,
)
case(
    "torch's: a sum",
    loss=partial(nn.MSELoss, reduction="sum"),
    optimizer=partial(torch.optim.SGD, lr=0.01),
    score=per_sample(of_pair),
)
case(
    "torch's: a sum of what is not ignored",
    model=three,
    data=ignored,
    loss=partial(CE, reduction="sum"),
    optimizer=partial(torch.optim.SGD, lr=0.01),
    score=per_sample(of_pair),
)

# ---------------------------------------------------------------------- functions and modules of one's own

case("a function of torch's", model=three, data=ignored, loss=F.cross_entropy)
case("a function with settings", model=three, data=sets.Cls, loss=partial(F.cross_entropy, ignore_index=1))
case("focal, with torch's attributes", model=three, data=sets.Cls, loss=losses.Focal)
case("focal over ignored ones too", model=three, data=ignored, loss=losses.Focal)
case("focal, with its own reduction", model=three, data=ignored, loss=losses.FocalKept)
case(
    "focal, another ignored",
    model=three,
    data=partial(sets.Cls, ignored=2),
    loss=partial(losses.FocalKept, ignore_index=2),
)
case(
    "focal, summed",
    model=three,
    data=ignored,
    loss=partial(losses.FocalKept, reduction="sum"),
    optimizer=partial(torch.optim.SGD, lr=0.01),
    score=per_sample(of_pair),
)
case("class weights called alpha", model=three, data=sets.Cls, loss=losses.Alpha)
by_count: dict[str, Any] = {"model": three, "data": sets.Cls}
case("class weights inside, counted", "train.count=losses.py:weight_of", loss=losses.inside, **by_count)
never = {**by_count, "worlds": (), "refused": 2}
case("class weights inside, miscounted", "train.count=losses.py:all_of", loss=losses.inside, **never)
case("class weights inside, misnamed", "loss={_ref_: losses.py:inside, _per_: sample}", loss=None, **never)
case("a class left out inside", model=three, data=sets.Cls, loss=losses.without_one)
case(
    "torch's: a weighted mean square",
    "loss={_ref_: torch.nn.functional.mse_loss, _targets_: {target: 1, weight: 2}}",
    data=sets.Weighted,
    loss=None,
    forward=lambda model, batch, _: losses.weighted(model(batch[0]), *batch[1:]),
)
case(
    "targets first, said",
    "loss={_ref_: losses.py:relative, _outputs_: {y_pred: 0}, _targets_: {y_true: 1}}",
    loss=None,
    forward=lambda model, batch, _: losses.relative(batch[1], model(batch[0])),
)
case("targets first", loss=losses.relative, worlds=(), refused=1)
case("the hardest half, in training alone", loss=losses.HardInTrain, **never)
case("a term that is ramped up", "train.step=steps.py:ramped", loss=None, worlds=(), refused=2)
missing: dict[str, Any] = {"model": three, "loss": losses.Focal, "worlds": (1, 2), "steps": 10}
case("samples that are missing later", data=sets.Broken, collate=sets.without_missing, **missing)
case("a reduction that is only a word", model=three, data=sets.Cls, loss=losses.Smooth)
case("tokens flattened", model=partial(dense, last=True), data=sets.Dense, loss=losses.flattened)
case("tokens shifted", model=partial(dense, last=True), data=sets.Dense, loss=losses.shifted)
masks = {"model": partial(dense, classes=1, squeezed=True), "data": sets.Masked, "forward": of_three}
targets = ("batch.targets=[1, 2]",)
case("a mask", *targets, loss=losses.masked, **masks)
case("masks: at least one", *targets, loss=losses.masked_safely, **masks)
case("masks: mean over all", *targets, loss=losses.masked_over_all, **masks)
case("masks: mean of means", *targets, loss=losses.masked_by_row, **masks)
case("masks: yes and no", *targets, loss=losses.selected, **{**masks, "data": partial(sets.Masked, kind="bool")})
some = {**masks, "data": partial(sets.Masked, kind="some")}
case("a mask that lets nothing through of some samples", *targets, loss=losses.masked, **some)
case("masks: lengths", *targets, loss=losses.by_lengths, **{**masks, "data": sets.Lengths})
case("NaN left out", model=three, data=sets.Holes, loss=losses.present)
case("weights of samples", *targets, data=sets.Weighted, loss=losses.weighted, forward=of_three)
case("weights of samples, mean", *targets, data=sets.Weighted, loss=losses.weighted_mean, forward=of_three)
case("quantiles", loss=partial(losses.pinball, tau=0.8))
case("log-cosh", loss=losses.log_cosh)
case("listwise", model=three, data=sets.Soft, loss=losses.listwise)
case("dice by sample", model=three, data=yes, loss=losses.dice_by_sample)
case("summed over places", model=three, data=partial(sets.Reg, outputs=3), loss=losses.over_places)
case("a loss in brackets", loss=losses.in_brackets)
case("a constant besides", loss=losses.plus_constant)
case("per positive", model=three, data=yes, loss=losses.positives)
case("a sum of one's own", loss=losses.summed, score=per_sample(of_pair))
case("a mean times the size", loss=losses.times_size, score=per_sample(of_pair))
code = {"model": partial(nets.Heads, kind="code"), "optimizer": partial(torch.optim.SGD, lr=0.01)}
in_order = "_outputs_: {recon: 0, x: 1, mu: 2, logvar: 3}, _targets_: []"
of_code: Any = lambda loss: lambda model, batch, _: loss(*model(batch[0]))  # noqa: E731
case(
    "a VAE's sums, in their order",
    f"loss={{_ref_: losses.py:elbo, {in_order}}}",
    loss=None,
    forward=of_code(losses.elbo),
    score=per_sample(of_code(losses.elbo)),
    **code,
)
case(
    "a VAE's sums by sample",
    f"loss={{_ref_: losses.py:elbo_mean, {in_order}}}",
    loss=None,
    forward=of_code(losses.elbo_mean),
    **code,
)
case(
    "a VAE's in the recipe's order",
    "batch={outputs: [0, 2, 3], targets: [1]}",
    loss=losses.elbo,
    worlds=(),
    refused=1,
    **code,
)
case("deep supervision", model=partial(nets.Heads, kind="list"), loss=losses.deep)
case("outputs in a mapping", model=partial(nets.Heads, kind="mapping"), loss=losses.mapping)
case(
    "one of the outputs, by its path",
    "batch.outputs=[other.aux]",
    model=partial(nets.Heads, kind="mapping"),
    worlds=(1,),
    forward=lambda model, batch, loss: loss(model(batch[0])["other"]["aux"], batch[1]),
)
case(
    "an output by its attribute",
    "batch.outputs=[aux]",
    model=partial(nets.Heads, kind="record"),
    worlds=(1,),
    forward=lambda model, batch, loss: loss(model(batch[0]).aux, batch[1]),
)
case(
    "two heads, two losses",
    "loss={a: {_target_: MSELoss, _outputs_: [0]}, b: {_target_: L1Loss, _outputs_: [1], _weight_: 0.3}}",
    model=nets.Heads,
    loss=None,
    forward=lambda model, batch, _: (
        F.mse_loss(model(batch[0])[0], batch[1]) + 0.3 * F.l1_loss(model(batch[0])[1], batch[1])
    ),
)
case(
    "two losses with counts of their own",
    "loss={a: {_target_: CrossEntropyLoss}, b: {_target_: losses.py:Focal, _weight_: 0.5}}",
    model=three,
    data=ignored,
    loss=None,
    forward=lambda model, batch, _: (
        F.cross_entropy(model(batch[0]), batch[1]) + 0.5 * losses.Focal()(model(batch[0]), batch[1])
    ),
)
case(
    "an auxiliary loss without targets",
    "loss={a: {_target_: MSELoss, _outputs_: [0]}, b: {_ref_: losses.py:small, _outputs_: [1], _targets_: []}}",
    model=nets.Heads,
    loss=None,
    forward=lambda model, batch, _: F.mse_loss(model(batch[0])[0], batch[1]) + losses.small(model(batch[0])[1]),
)
speech = {"model": partial(dense, last=True), "data": sets.Speech, "forward": of_three}
letters = ("batch.targets=[1, 2, 3]",)
case("speech", *letters, loss=losses.ctc, **speech)
case("speech, by the letter", *letters, loss=losses.ctc_by_letter, **speech)
case("no module and no function", loss=partial(losses.Callable, power=2))
case(
    "what a loss leaves open, said",
    "loss={_ref_: losses.py:root_mean}",
    "batch.targets=[1, 2]",
    loss=None,
    forward=lambda model, batch, _: losses.root_mean(model(batch[0]), *batch[1:]),
    worlds=(1,),
    pieces=False,
    refused=2,
    model=masks["model"],
    data=sets.Lengths,
)

# ---------------------------------------------------------------------- of the whole batch

whole = {"worlds": (1,), "pieces": False, "refused": 2}
case("a root of a mean", loss=losses.root, **whole)
case("dice", model=three, data=yes, loss=losses.dice, **whole)
case("correlation", model=three, data=partial(sets.Reg, outputs=3), loss=losses.correlation, **whole)
case("the hardest half", model=three, data=sets.Cls, loss=losses.hardest_half, **whole)
views: dict[str, Any] = {
    "model": nets.Twin,
    "data": sets.Views,
    "forward": lambda model, batch, loss: loss(*model(*batch)),
}
two = ("batch={inputs: [0, 1], targets: [], outputs: [0, 1]}",)
case("contrast", *two, loss=losses.contrast, **views, **whole)
case("variance and invariance", *two, loss=losses.vicreg, **views, **whole)
case("redundancy", *two, loss=losses.barlow, **views, **whole)
case(
    "contrast, as it is said",
    *two,
    "loss={_ref_: losses.py:contrast, _per_: batch}",
    loss=None,
    worlds=(1,),
    pieces=False,
    **{**views, "forward": lambda model, batch, _: losses.contrast(*model(*batch))},
)
case("a loss that draws", loss=losses.noisy, worlds=(1,), pieces=False)
case("padded, and no mask", data=sets.Sequences, collate=sets.pad_alone, **whole)

# ---------------------------------------------------------------------- with a state, with parameters

case("a buffer that moves", loss=losses.Centered, pieces=False)
case("a loss that counts its calls", loss=losses.Annealed, pieces=False)
case("a loss that learns its scale", loss=losses.Uncertain)
case("centers of classes", model=three, data=sets.Cls, loss=losses.Centers)
case("a margin with the last layer in it", model=three, data=sets.Cls, loss=losses.Margin)
case("a net inside of a loss", loss=losses.Perceptual)

# ---------------------------------------------------------------------- of collates that pad or join

case("nodes of graphs", model=three, data=partial(sets.Sequences, classes=True), collate=sets.joined, loss=CE)
case("rows that are not the samples", data=sets.Sequences, collate=sets.joined)
case("padded, with a mask", *targets, data=sets.Sequences, collate=sets.pad, loss=losses.masked, forward=of_three)
case(
    "padded, with ignored labels",
    model=partial(dense),
    data=partial(sets.Sequences, classes=True),
    collate=sets.pad_ignored,
    loss=CE,
)
case(
    "graphs, pooled",
    "batch={inputs: [0, 1], targets: [2]}",
    model=nets.Pooled,
    data=sets.Sequences,
    collate=sets.with_owners,
    forward=lambda model, batch, loss: loss(model(batch[0], batch[1]), batch[2]),
)

# ---------------------------------------------------------------------- a model's own

OWN = ("loss=model", "batch={inputs: {input_ids: input_ids, labels: labels}, targets: []}")


def of_language(model: nn.Module, batch: Any, _: Any) -> Tensor:
    """The loss that the model gives, wherever it stands."""
    given: Any = model(**batch)
    if isinstance(given, tuple):
        return given[1]  # type: ignore[no-any-return]
    if isinstance(given, dict):
        return given["loss"] if "loss" in given else given["a"] + given["b"]  # type: ignore[no-any-return]
    return getattr(given, "loss", given).squeeze()  # type: ignore[no-any-return]


language: dict[str, Any] = {"data": sets.Tok, "loss": None, "forward": of_language}
unlabelled = {**language, "data": partial(sets.Tok, none=True)}
case("a model's own loss: of some samples nothing counts", *OWN, model=nets.Language, **unlabelled)
case(
    "a model's own mask: of some samples nothing counts",
    *OWN,
    model=partial(nets.Language, gives="masked"),
    **unlabelled,
)
for gives in ("mapping", "alone", "parts", "object", "rows", "brackets"):
    case(f"a model's own loss: {gives}", *OWN, model=partial(nets.Language, gives=gives), **language)
case("a model's own loss: in a tuple", *OWN, "batch.loss=1", model=partial(nets.Language, gives="tuple"), **language)
case(
    "a model's own loss: shifted",
    *OWN,
    model=partial(nets.Language, shifts=True),
    **{**language, "data": partial(sets.Tok, ignored=False)},
)
case("a model's own loss: shifted and ignored", *OWN, model=partial(nets.Language, shifts=True), **language)
case("a model's own loss: counted", *OWN, "train.count=steps.py:labels_of", model=nets.Language, **language)
case(
    "a model's own loss: a sum",
    *OWN,
    model=partial(nets.Language, gives="sum"),
    score=lambda model, batch, _: of_language(model, batch, _) / len(batch["labels"]),
    **language,
)
case(
    "a model's own loss: with a penalty",
    *OWN,
    model=partial(nets.Language, gives="regularized"),
    **{**language, "data": partial(sets.Tok, ignored=False)},
)
case(
    "a model's losses by name",
    "loss=model",
    "batch={inputs: [0, 1], targets: []}",
    model=nets.Detects,
    data=sets.Cls,
    loss=None,
    forward=lambda model, batch, _: sum(model(*batch).values()),
)

case(
    "diffusion",
    "loss=model",
    "batch={inputs: [0, 1, 2], targets: []}",
    model=nets.Denoiser,
    data=sets.Noised,
    loss=None,
    forward=lambda model, batch, _: model(*batch),
)
case(
    "diffusion that draws its noise",
    "loss=model",
    "batch={inputs: [0], targets: []}",
    model=partial(nets.Denoiser, draws=True),
    loss=None,
    forward=lambda model, batch, _: model(batch[0]),
    worlds=(1,),
    pieces=False,
)

# ---------------------------------------------------------------------- of a step function


def of_step(step: Any) -> Any:
    """The loop calls it too."""
    return lambda model, batch, _: step(model, batch)["loss"]


def stepped(name: str, step: Any, *recipe: str, **parts: Any) -> None:
    """A case with a step function."""
    said = f"train.step=steps.py:{step.__name__}"
    case(name, said, *recipe, loss=None, forward=of_step(step), **parts)


stepped("a step", steps.plain)
stepped("a step with a mask", steps.of_mask, **{key: masks[key] for key in ("model", "data")})
stepped(
    "a step with a mask, counted",
    steps.of_mask,
    "train.count=steps.py:mask_of",
    **{key: masks[key] for key in ("model", "data")},
)
stepped("a step with a mask of nothing for some", steps.of_mask, **{key: some[key] for key in ("model", "data")})
stepped(
    "a step with a mask of nothing for some, counted",
    steps.of_mask,
    "train.count=steps.py:mask_of",
    **{key: some[key] for key in ("model", "data")},
)
stepped("a step that calls a method", steps.by_method)
stepped("a step that looks for the wrapper", steps.around_wrapper)
stepped("a step that calls layers", steps.by_parts, model=nets.Deep)
stepped("a step with two forward passes", steps.consistent)
stepped("a step with a gradient penalty", steps.penalized, model=nets.Deep)
stepped("a step that is a sum", steps.summed, score=per_sample(of_step(steps.summed)))
stepped(
    "a step that drops samples", steps.of_present, model=three, data=sets.Holes, worlds=(1,), pieces=False, refused=2
)
stepped(
    "a step that drops samples, counted",
    steps.of_present,
    "train.count=steps.py:present_of",
    model=three,
    data=sets.Holes,
)
stepped("mixup by NumPy", steps.mixed, worlds=(1,), pieces=False, refused=2)
stepped("a step that draws from all generators", steps.drawn_by_all, worlds=(1,), pieces=False, refused=2)
stepped("a penalty of the weights in a step", steps.with_weights)
stepped("contrast in a step", steps.contrasted, model=nets.Twin, data=sets.Views, worlds=(1,), pieces=False, refused=2)
case(
    "a teacher in a step",
    "train.step={_target_: steps.py:Teacher}",
    loss=steps.Teacher,
    forward=lambda model, batch, step: step(model, batch)["loss"],
    pieces=False,
)
case(
    "a step that is a module",
    "train.step={_target_: steps.py:TeachingModule}",
    loss=steps.TeachingModule,
    forward=lambda model, batch, step: step(model, batch)["loss"],
    pieces=False,
)

# ---------------------------------------------------------------------- several numbers by name


def added(*names: str) -> Any:
    """The sum of those that are losses."""

    def forward(model: nn.Module, batch: Any, loss: Any) -> Tensor:
        given = loss(model(batch[0]), batch[1])
        given = given if isinstance(given, dict) else given._asdict()
        return torch.stack([given[name] for name in names]).sum()

    return forward


ce_and_size = added("ce", "size")
case("by name: added, and an accuracy", model=three, data=ignored, loss=losses.by_names, forward=ce_and_size)
case("by name: of a module", model=three, data=ignored, loss=losses.ByNames, forward=ce_and_size)
case("by name: a tuple with names", loss=losses.in_parts, forward=added("near", "small"))
case("by name: a loss and its parts", loss=losses.with_whole, forward=added("loss"))
case(
    "by name: the whole by another name, said",
    "batch.loss=objective",
    loss=losses.unnamed_whole,
    forward=added("objective"),
)
case(
    "by position",
    "batch.loss=0",
    loss=losses.in_a_pair,
    forward=lambda model, batch, loss: loss(model(batch[0]), batch[1])[0],
)
case(
    "by name: weighted, beside another",
    "loss={a: {_ref_: losses.py:by_names, _weight_: 0.5}, b: {_target_: CrossEntropyLoss}}",
    model=three,
    data=ignored,
    loss=None,
    forward=lambda model, batch, _: (
        0.5 * ce_and_size(model, batch, losses.by_names) + F.cross_entropy(model(batch[0]), batch[1])
    ),
)
case(
    "by name: from the model, with an accuracy",
    "loss=model",
    "batch={inputs: [0, 1]}",
    model=nets.NamesLosses,
    loss=None,
    forward=lambda model, batch, _: model(*batch)["near"] + model(*batch)["small"],
)
case(
    "by name: of the whole batch", loss=losses.whole_of_batch, worlds=(1,), pieces=False, forward=added("near", "root")
)
case("by name: a root in it", loss=losses.whole_of_batch, worlds=(), refused=2)
case("a pair of which nobody knows", loss=losses.in_a_pair, worlds=(), refused=1)
case("by name: the whole by another name", loss=losses.unnamed_whole, worlds=(), refused=1)
case("by name: not reduced", loss=losses.unreduced, worlds=(), refused=1)
case("by name: nothing to train by", loss=losses.only_known, worlds=(), refused=1)
