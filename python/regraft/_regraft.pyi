from collections.abc import Callable, Collection, Mapping, Sequence
from os import PathLike
from typing import Any, TypeAlias, TypedDict, TypeVar, final, overload

_T = TypeVar("_T")
_TensorLike = Any
_Weights: TypeAlias = "Mapping[str, _TensorLike] | StateDict | str | PathLike[str]"
_Inputs: TypeAlias = "Sequence[_TensorLike] | str | PathLike[str]"

__all__ = [
    "Adapter",
    "Array",
    "DiskCache",
    "Model",
    "Program",
    "Session",
    "SourceInfo",
    "Staged",
    "StateDict",
    "Watch",
    "__version__",
    "before_exit",
    "compile",
    "is_known",
    "match_names",
    "publish_together",
]

__version__: str

@final
class Array:
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def __dlpack__(self, **options: Any) -> Any: ...
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

@final
class SourceInfo:
    name: str
    aliases: list[str]
    dtype: str
    shape: list[int]
    kind: str

@final
class Program:
    @staticmethod
    def from_pt2(path: str | PathLike[str]) -> Program: ...
    @staticmethod
    def from_bytes(data: bytes) -> Program: ...
    @property
    def sources(self) -> list[SourceInfo]: ...
    @property
    def inputs(self) -> list[str]: ...
    @property
    def outputs(self) -> list[str]: ...
    @property
    def has_state(self) -> bool: ...

@final
class Adapter:
    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def elsewhere(self) -> list[str]: ...

@final
class StateDict:
    @staticmethod
    def open(path: str | PathLike[str], key: str | None = None) -> StateDict: ...
    @property
    def skipped(self) -> dict[str, str]: ...
    def renamed(self, names: dict[str, str]) -> StateDict: ...
    def keys(self) -> list[str]: ...
    def only(self, names: list[str]) -> StateDict: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __getitem__(self, name: str, /) -> Array: ...

@final
class DiskCache:
    def __new__(cls, path: str | PathLike[str] | None = None, limit: int | None = None) -> DiskCache: ...

@final
class Staged:
    def publish(self) -> str: ...

@final
class Session:
    @overload
    def run(self, inputs: _Inputs, wrap: Callable[[Any], _T]) -> list[_T]: ...
    @overload
    def run(self, inputs: _Inputs, wrap: None = None) -> list[Array]: ...
    def reset(self) -> None: ...

class _Memory(TypedDict):
    in_use: int
    free: int
    limit: int | None
    slots: int
    private: int

class _CompileFacts(TypedDict):
    nodes: int
    build_seconds: float
    cache: str
    key: str | None
    warnings: list[str]
    evaluated: list[tuple[str, str, int, list[str], int]]

@final
class Model:
    @staticmethod
    def load(path: str | PathLike[str], threads: int | None = None) -> Model: ...
    @staticmethod
    def from_bytes(data: bytes, threads: int | None = None) -> Model: ...
    @overload
    def run(self, inputs: _Inputs, wrap: Callable[[Any], _T]) -> list[_T]: ...
    @overload
    def run(self, inputs: _Inputs, wrap: None = None) -> list[Array]: ...
    def session(self) -> Session: ...
    def refit(
        self,
        weights: _Weights | None = None,
        *,
        partial: bool = False,
        ignore_unknown: bool = False,
        constants: str | Collection[str] | None = None,
        reject_non_finite: bool = False,
        changed: str | Collection[str] | None = None,
        adapters: Sequence[tuple[Adapter, float]] | None = None,
        verify: Sequence[_TensorLike] | None = None,
        observer: Callable[[str, int, int], object] | None = None,
    ) -> str: ...
    def stage(
        self,
        weights: _Weights | None = None,
        *,
        partial: bool = False,
        ignore_unknown: bool = False,
        constants: str | Collection[str] | None = None,
        reject_non_finite: bool = False,
        changed: str | Collection[str] | None = None,
        adapters: Sequence[tuple[Adapter, float]] | None = None,
        verify: Sequence[_TensorLike] | None = None,
        observer: Callable[[str, int, int], object] | None = None,
    ) -> Staged: ...
    def adapter(
        self,
        name: str,
        weights: _Weights,
        config: str | None = None,
        alpha: float | None = None,
    ) -> Adapter: ...
    def fork(self) -> Model: ...
    @property
    def mode(self) -> str: ...
    @property
    def is_bound(self) -> bool: ...
    @property
    def generation(self) -> int | None: ...
    @property
    def inputs(self) -> list[tuple[str, str]]: ...
    @property
    def outputs(self) -> list[tuple[str, str]]: ...
    @property
    def sources(self) -> list[SourceInfo]: ...
    @property
    def slots(self) -> list[tuple[str, int, list[str]]]: ...
    def slot_bytes(self, name: str) -> Array: ...
    def source(self, name: str) -> Array | None: ...
    @property
    def adapters(self) -> list[tuple[str, float]]: ...
    @property
    def target(self) -> str: ...
    def memory(self) -> _Memory: ...
    def set_memory_limit(self, limit: int | None) -> None: ...
    def trim(self) -> None: ...
    def keep_previous(self, keep: bool) -> None: ...
    def roll_back(self) -> None: ...
    def save(
        self, path: str | PathLike[str], mode: str = "refittable", keep_sources: str = "embedded"
    ) -> int: ...
    def to_bytes(self, mode: str = "refittable", keep_sources: str = "embedded") -> bytes: ...

@final
class Watch:
    def watch_containers(self, containers: list[Any]) -> None: ...
    def changed_containers(self) -> list[int]: ...
    def watch_tensors(self, tensors: list[tuple[Any, int, int]]) -> list[int]: ...
    def find_versions(self, one: int, counted: int, other: int, version: int) -> bool: ...
    def changed_tensors(self) -> tuple[list[int], list[int]]: ...
    def rebase_tensors(self) -> None: ...
    def watch_memory(self, addresses: list[int], sizes: list[int]) -> None: ...
    def changed_memory(self, addresses: list[int]) -> list[int]: ...
    def changed_samples(self, moved: list[int]) -> list[int]: ...

def compile(
    program: Program,
    weights: _Weights | None,
    *,
    mode: str = "refittable",
    identical: bool = False,
    dtype: str | None = None,
    weight_format: str | None = None,
    threads: int | None = None,
    tune: str = "off",
    cache: object | None = None,
    observer: Callable[[int, int, float], object] | None = None,
) -> tuple[Model, _CompileFacts]: ...
def match_names(
    sources: Sequence[tuple[str, list[str], str, list[int], bool, bool]],
    weights: _Weights,
    *,
    partial: bool = False,
    ignore_unknown: bool = False,
    constants: str | Collection[str] | None = None,
    rename: Sequence[tuple[str, str]] = ...,
) -> tuple[list[tuple[str, str]], str, list[tuple[str, str]]]: ...
def publish_together(staged: list[Staged]) -> list[str]: ...
def before_exit() -> None: ...
def is_known(operator: str) -> bool: ...
