"""`Optimizer`: from gradients to new weights, the same on all ranks.

`Optimizer.apply` is where ranks meet: it replaces each gradient by its mean over the global batch (`sync_mean`). So a
loop written by hand is data-parallel without any wrapper. What changes from step to step (learning rate, number of
steps, slots) lies in Variables, which a traced step reads anew each time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from disttensor import config, distributed, initializers, ops
from disttensor.context import state
from disttensor.distributed import finite, single_copy
from disttensor.distributed.collectives import part_of_mean, sync_sum
from disttensor.distributed.partition import Term
from disttensor.distributed.rows import mean_of_gradient
from disttensor.errors import ArgumentError
from disttensor.ops.core import fence
from disttensor.optimizers.accumulation import EveryNth
from disttensor.optimizers.checking import check_gradients
from disttensor.optimizers.clipping import clipped
from disttensor.optimizers.schedules import LearningRateSchedule
from disttensor.optimizers.sharing import sharing
from disttensor.saving.registration import Configurable
from disttensor.tensor import Tensor, Variable, convert_to_tensor


class Optimizer(Configurable):
    """Base of optimizers; subclasses make their slots in ``build`` and define ``update_step``.

    Parameters
    ----------
    learning_rate : float or LearningRateSchedule
    weight_decay : float, optional
        Each step first takes learning_rate · weight_decay · weight from each weight.
    clipnorm : float, optional
        Gradients of larger norm are scaled down to it, each alone. At most one of the three ways to clip.
    clipvalue : float, optional
        Elements of gradients are cut to the interval ±clipvalue.
    global_clipnorm : float, optional
        All gradients are scaled down together if the norm of all of them is larger.
    use_ema : bool, default False
        Whether to keep moving averages of the weights, which `finalize_variable_values` puts in their place.
    ema_momentum : float, default 0.99
        average ← momentum · average + (1 − momentum) · weight.
    ema_overwrite_frequency : int, optional
        After so many steps, each time, the averages replace the weights.
    loss_scale_factor : float, optional
        `scale_loss` multiplies by it, and gradients are divided by it, so that small ones do not vanish in float16.
    gradient_accumulation_steps : int, optional
        Weights change only every so many steps, by the mean of the gradients since. Steps in between add gradients up
        where they are, and send nothing; a traced step has two plans, one of each kind. (In deterministic mode
        gradients are summed over the virtual shards in every step.)
    name : str, optional
        Default: the class name in lower case.

    Examples
    --------
    >>> import disttensor as keras
    >>> weight = keras.Variable([1.0, 2.0])
    >>> optimizer = keras.optimizers.SGD(learning_rate=0.1)
    >>> optimizer.apply([keras.ops.convert_to_tensor([1.0, -1.0])], [weight])
    >>> weight.numpy().round(3).tolist()
    [0.8999999761581421, 2.0999999046325684]
    """

    _is_building = False

    def __init__(
        self,
        learning_rate: Any,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
    ):
        self.name = name or type(self).__name__.lower()
        self.weight_decay = weight_decay
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm
        self.use_ema = use_ema
        self.ema_momentum = ema_momentum
        self.ema_overwrite_frequency = ema_overwrite_frequency
        self.loss_scale_factor = loss_scale_factor
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self._check_arguments()
        self.built = False
        self._trainable_variables: list[Variable] = []
        self._index: dict[int, int] = {}
        self._slots: list[Variable] = []
        self._averages: list[Variable] = []
        self._gradient_sums: list[Variable] = []
        self._excluded: set[int] = set()
        self._excluded_names: str | None = None
        self._check: Tensor | None = None  # behind which a step changes variables, since it may raise
        self._iterations = self._counter(0, "int64", "iteration")
        n = gradient_accumulation_steps
        self.is_update_step = EveryNth(n, self._iterations, self.name) if n else None
        self.sums_over_ranks_first = False
        self._learning_rate: Variable | LearningRateSchedule
        if isinstance(learning_rate, LearningRateSchedule):
            self._learning_rate = learning_rate
        else:
            self._learning_rate = self._counter(_number(learning_rate), config.floatx(), "learning_rate")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "build" in cls.__dict__:
            cls.build = sharing(cls.build)  # type: ignore[method-assign]

    def _check_arguments(self) -> None:
        clips = {n: getattr(self, n) for n in ("clipnorm", "clipvalue", "global_clipnorm")}
        given = [n for n, value in clips.items() if value is not None]
        if len(given) > 1:
            raise ArgumentError(f"{self.name}: gradients can be clipped in one way only, got {' and '.join(given)}.")
        for name in given:
            if not clips[name] > 0:
                raise ArgumentError(f"{self.name}: {name} must be positive, got {clips[name]!r}.")
        if not 0 <= self.ema_momentum <= 1:
            raise ArgumentError(f"{self.name}: ema_momentum must lie between 0 and 1, got {self.ema_momentum!r}.")
        for name in ("ema_overwrite_frequency", "gradient_accumulation_steps"):
            steps = getattr(self, name)
            if steps is not None and (not isinstance(steps, int) or steps < 1):
                raise ArgumentError(f"{self.name}: {name} must be a positive int, got {steps!r}.")

    def _counter(self, value: Any, dtype: str, name: str) -> Variable:
        variable = Variable(value, dtype=dtype, trainable=False, autocast=False, name=name)
        variable.path = f"{self.name}/{name}"
        return variable

    # --- what subclasses define

    @sharing
    def build(self, variables: Sequence[Variable]) -> None:
        """Make the slots for these trainable variables.

        With several ranks the variables get the values they have on rank 0, so that all ranks start equal: every rank
        must call this at the same point of the program. `apply` does it in its first call.
        """
        self._trainable_variables = list(variables)
        self._index = {id(v): i for i, v in enumerate(self._trainable_variables)}
        distributed.broadcast_variables(self._trainable_variables)
        if self.use_ema:
            self._averages = [self._like(v, "average", "zeros") for v in variables]
        if self.gradient_accumulation_steps:
            self._gradient_sums = [self._gradient_sum(v) for v in variables]
        self.built = True

    def _gradient_sum(self, variable: Variable) -> Variable:
        made = self._like(variable, "gradient_accumulator", "zeros")
        if self.accumulates_locally and not config.virtual_shards():
            made.partition = Term(distributed.data_group(), variable.partition)
        return made

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
        """Change one variable, and its slots, by its gradient."""
        raise NotImplementedError(f"{type(self).__name__} must define update_step(gradient, variable, learning_rate).")

    # --- slots

    def add_variable(
        self, shape: Any, initializer: Any = "zeros", dtype: Any = None, aggregation: str = "none", name: Any = None
    ) -> Variable:
        """Make a variable of the optimizer's state.

        Parameters
        ----------
        shape : tuple of int
        initializer : Initializer or str, default "zeros"
        dtype : dtype, default `config.floatx`
        name : str, optional
        """
        variable = Variable(
            initializers.get(initializer), tuple(shape), dtype, trainable=False, autocast=False,
            aggregation=aggregation, name=name,
        )  # fmt: skip
        variable.path = f"{self.name}/{variable.name}"
        self._slots.append(variable)
        return variable

    def add_variable_from_reference(
        self, reference_variable: Variable, name: str | None = None, initializer: Any = "zeros"
    ) -> Variable:
        """Make a slot: a variable of the shape and dtype of another one."""
        slot = self._like(reference_variable, name, initializer)
        self._slots.append(slot)
        return slot

    def _like(self, variable: Variable, name: str | None, initializer: Any) -> Variable:
        slot = Variable(initializers.get(initializer), variable.shape, variable.dtype, trainable=False, autocast=False)
        slot.name = f"{variable.path.replace('/', '_')}_{name or 'slot'}"
        slot.path = f"{self.name}/{slot.name}"
        slot.partition = variable.partition
        return slot

    def add_optimizer_variables(
        self, trainable_variables: Iterable[Variable], name: str | Sequence[str], initializer: Any = "zeros"
    ) -> Any:
        """A slot for each variable: a list of them, or for several names a tuple of lists."""
        names = [name] if isinstance(name, str) else list(name)
        rows = [
            [self.add_variable_from_reference(v, n, initializer) for n in names] for v in trainable_variables
        ]  # fmt: skip
        columns = tuple([row[i] for row in rows] for i in range(len(names)))
        return columns[0] if isinstance(name, str) else columns

    def _get_variable_index(self, variable: Variable) -> int:
        """The place of a trainable variable among those given to `build`, and so of its slots."""
        return self._index[id(variable)]

    @property
    def variables(self) -> list[Variable]:
        """The state: number of steps, learning rate, averages, sums of gradients, slots."""
        rate = [self._learning_rate] if isinstance(self._learning_rate, Variable) else []
        return [self._iterations, *rate, *self._averages, *self._gradient_sums, *self._slots]

    @property
    def trainable_variables(self) -> list[Variable]:
        """The variables that the optimizer was built for."""
        return list(self._trainable_variables)

    @property
    def replicated_variables(self) -> list[Variable]:
        """Those of `variables` that are equal on all ranks after each step: no sums that a rank forms for itself."""
        own = {id(v) for v in self._gradient_sums}
        return [v for v in self.variables if id(v) not in own]

    def share_variables(self, wanted: bool = True) -> None:
        """Let the ranks of a host have one copy of weights and slots, see `disttensor.distributed.single_copy`.

        Collective. `build` does it, and `fit` when it begins, for whatever has written to them since.

        Parameters
        ----------
        wanted : bool, default True
            Whether it is of use; where steps run eagerly, the first makes each rank's copies its own again.
        """
        single_copy.share([*self._trainable_variables, *self.replicated_variables] if wanted else ())

    @property
    def innermost(self) -> Optimizer:
        """The optimizer that updates the weights: this one, if it wraps no other."""
        return self

    @property
    def iterations(self) -> Any:
        """How often the weights were updated, an int64 Variable (a tensor if gradients are accumulated)."""
        if self.gradient_accumulation_steps:
            return self._iterations.value // self.gradient_accumulation_steps
        return self._iterations

    @property
    def learning_rate(self) -> Any:
        """The present learning rate: the Variable, or what the schedule gives for this step.

        Set it to a float or a scalar tensor; nothing is traced again.
        """
        if isinstance(self._learning_rate, LearningRateSchedule):
            return self._learning_rate(self._iterations.value)
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if isinstance(self._learning_rate, LearningRateSchedule):
            raise ArgumentError(
                f"the learning rate of {self.name} follows {type(self._learning_rate).__name__} and cannot be set; "
                "make the optimizer with a number instead, or change the schedule."
            )
        self._learning_rate.assign(_number(value))

    def assign(self, variable: Variable, value: Any) -> None:
        """``variable.assign(value)``, for `update_step`."""
        variable.assign(value)

    def assign_add(self, variable: Variable, value: Any) -> None:
        """``variable.assign_add(value)``, for `update_step`."""
        variable.assign_add(value)

    def assign_sub(self, variable: Variable, value: Any) -> None:
        """``variable.assign_sub(value)``, for `update_step`."""
        variable.assign_sub(value)

    # --- a step

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Variable]]) -> Any:
        """`apply` for pairs of gradient and variable; returns `iterations`."""
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables)
        return self._iterations

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Variable] | None = None) -> None:
        """One step: change the variables by the mean of their gradients over all ranks.

        Parameters
        ----------
        grads : sequence of Tensor or None
            One for each variable, computed from this rank's rows as a mean over them. Variables whose gradient is None
            stay as they are.
        trainable_variables : sequence of Variable, optional
            Default: those given to `build`. The first call builds the optimizer for them.

        Raises
        ------
        ArgumentError
            If no gradient is given, or a variable is not one that the optimizer was built for.
        ShapeError
            If a gradient does not have the shape of its variable.

        Warns
        -----
        UserWarning
            If gradients are missing; it names the variables.
        """
        means, variables = self.mean_gradients(grads, trainable_variables)
        updater = self.innermost
        if state.checks_gradients:
            whole = self._trainable_variables if trainable_variables is None else trainable_variables
            known = [(g, v) for g, v in zip(grads, whole, strict=True) if g is not None]
            updater._check = finite.checked([g for g, _ in known], [v for _, v in known])
        try:
            self.apply_mean(means, variables)
        finally:
            updater._check = None

    def mean_gradients(
        self, grads: Sequence[Any], trainable_variables: Sequence[Variable] | None = None
    ) -> tuple[list[Tensor], list[Variable]]:
        """The first half of `apply`: check, build, and take the means over all ranks.

        Returns
        -------
        tuple of list
            The mean gradients, and the variables that they belong to, without those that have no gradient. If
            `accumulates_locally`, what this rank adds to the means.
        """
        grads, variables = self._checked(grads, trainable_variables)
        mean = part_of_mean if self.accumulates_locally else mean_of_gradient
        pairs = [(mean(g), v) for g, v in zip(grads, variables, strict=True) if g is not None]
        return [g for g, _ in pairs], [v for _, v in pairs]

    def bytes_sent(self, variable: Variable) -> int:
        """How long the gradient of a variable is where ranks sum it."""
        return int(variable.memory.nbytes)

    @property
    def sends_rows(self) -> bool:
        """Whether ranks may exchange rows of a table's gradient in place of all of it."""
        return not self.accumulates_locally

    def apply_mean(self, gradients: list[Tensor], variables: list[Variable]) -> None:
        """The second half of `apply`: change the variables by what `mean_gradients` returned."""
        gradients = [self._behind_check(g) for g in gradients]
        if self.loss_scale_factor is not None:
            gradients = [g / self.loss_scale_factor for g in gradients]
        if self.is_update_step is not None:
            self._accumulate(gradients, variables, self.is_update_step)
        else:
            self._update(gradients, variables)
        if self.use_ema:
            self._update_averages()
        for variable in variables:
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable.value))
        self._iterations.assign(self._behind_check(self._iterations.value) + 1)

    def _behind_check(self, x: Tensor) -> Tensor:
        return x if self._check is None else fence(x, self._check)

    def _checked(
        self, grads: Sequence[Any], trainable_variables: Sequence[Variable] | None
    ) -> tuple[list[Any], list[Variable]]:
        """Gradients and variables as lists, after building if need be."""
        grads = list(grads)
        if trainable_variables is None and not self.built:
            raise ArgumentError(f"{self.name}: call build(variables) first, or pass trainable_variables to apply().")
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        if not self.built:
            self.build(variables)
        check_gradients(self.name, grads, variables, known=self._index)
        return grads, variables

    def _update(self, gradients: list[Tensor], variables: list[Variable]) -> None:
        clips = self.clipnorm, self.clipvalue, self.global_clipnorm
        gradients = clipped(gradients, variables, *clips)
        rate = self._behind_check(convert_to_tensor(self.learning_rate))
        if self.weight_decay is not None:
            for variable in variables:
                if self._use_weight_decay(variable):
                    decay = ops.cast(self.weight_decay, variable.dtype) * ops.cast(rate, variable.dtype)
                    variable.assign_sub(variable.value * decay)
        self._update_variables(gradients, variables, rate)

    def _update_variables(self, gradients: list[Tensor], variables: list[Variable], rate: Tensor) -> None:
        for gradient, variable in zip(gradients, variables, strict=True):
            self.update_step(ops.cast(gradient, variable.dtype), variable, ops.cast(rate, variable.dtype))

    @property
    def accumulates_locally(self) -> bool:
        """Whether gradients are added up on each rank, and over ranks in the step of the update only."""
        together = state.virtual_shards or self.sums_over_ranks_first
        return self.gradient_accumulation_steps is not None and not together

    def _accumulate(self, gradients: list[Tensor], variables: list[Variable], is_update_step: EveryNth) -> None:
        """Add the gradients up; in every n-th step update by their mean."""
        sums = [self._gradient_sums[self._get_variable_index(v)] for v in variables]
        totals = [s.value + g for s, g in zip(sums, gradients, strict=True)]
        if not is_update_step():
            for gradient_sum, total in zip(sums, totals, strict=True):
                gradient_sum.assign(total)
            return
        if self.accumulates_locally:
            totals = [sync_sum(t) for t in totals]
        self._update([t / is_update_step.n for t in totals], variables)
        for gradient_sum in sums:
            gradient_sum.assign(ops.zeros(gradient_sum.shape, gradient_sum.dtype))

    # --- weight decay, moving averages, loss scale

    def exclude_from_weight_decay(
        self, var_list: Sequence[Variable] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Leave variables out of weight decay; call it before the first step.

        Parameters
        ----------
        var_list : sequence of Variable, optional
        var_names : sequence of str, optional
            Regular expressions; variables in whose name one is found are left out ("bias").
        """
        if self.built:
            raise ArgumentError(f"{self.name}: exclude_from_weight_decay() must be called before build().")
        self._excluded = {id(v) for v in var_list or ()}
        self._excluded_names = "|".join(var_names) if var_names else None

    def _use_weight_decay(self, variable: Variable) -> bool:
        by_name = self._excluded_names is not None and re.search(self._excluded_names, variable.name) is not None
        return not by_name and id(variable) not in self._excluded

    def _update_averages(self) -> None:
        momentum = ops.where(ops.equal(self.iterations, 0), 0.0, self.ema_momentum)
        for variable, average in zip(self._trainable_variables, self._averages, strict=True):
            m = ops.cast(momentum, variable.dtype)
            average.assign(m * average.value + (1 - m) * variable.value)
        if self.ema_overwrite_frequency:
            now = ops.equal((self.iterations + 1) % self.ema_overwrite_frequency, 0)
            for variable, average in zip(self._trainable_variables, self._averages, strict=True):
                variable.assign(ops.where(now, average.value, variable.value))

    def finalize_variable_values(self, var_list: Iterable[Variable]) -> None:
        """Give the variables their final values, at the end of training: with ``use_ema`` their moving averages."""
        if self.use_ema:
            for variable in var_list:
                variable.assign(self._averages[self._get_variable_index(variable)].value)

    def scale_loss(self, loss: Any) -> Any:
        """The loss to differentiate: multiplied by ``loss_scale_factor``, if there is one."""
        return loss if self.loss_scale_factor is None else loss * self.loss_scale_factor

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, with the name and the present learning rate."""
        config = {**super().get_config(), "name": self.name}
        if isinstance(self._learning_rate, Variable):
            config["learning_rate"] = float(self._learning_rate.numpy())
        return config


def _number(learning_rate: Any) -> Any:
    if isinstance(learning_rate, (bool, str)) or not isinstance(
        learning_rate, (int, float, np.generic, np.ndarray, Tensor, Variable)
    ):
        raise ArgumentError(f"a learning rate must be a number or a LearningRateSchedule, got {learning_rate!r}.")
    return learning_rate
