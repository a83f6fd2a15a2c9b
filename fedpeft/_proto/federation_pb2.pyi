from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(_message.Message):
    __slots__ = ("run", "round", "client", "seed", "space", "broadcasts", "codec", "settings", "counted", "refused", "strategy", "merged", "privacy", "statistics")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    BROADCASTS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    round: int
    client: int
    seed: int
    space: str
    broadcasts: _containers.RepeatedCompositeFieldContainer[Broadcast]
    codec: str
    settings: Settings
    counted: int
    refused: int
    strategy: str
    merged: int
    privacy: _containers.RepeatedScalarFieldContainer[str]
    statistics: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run: _Optional[bytes] = ..., round: _Optional[int] = ..., client: _Optional[int] = ..., seed: _Optional[int] = ..., space: _Optional[str] = ..., broadcasts: _Optional[_Iterable[_Union[Broadcast, _Mapping]]] = ..., codec: _Optional[str] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., counted: _Optional[int] = ..., refused: _Optional[int] = ..., strategy: _Optional[str] = ..., merged: _Optional[int] = ..., privacy: _Optional[_Iterable[str]] = ..., statistics: _Optional[_Iterable[str]] = ...) -> None: ...

class Broadcast(_message.Message):
    __slots__ = ("from_round", "to_round", "codec", "payload")
    FROM_ROUND_FIELD_NUMBER: _ClassVar[int]
    TO_ROUND_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    from_round: int
    to_round: int
    codec: str
    payload: bytes
    def __init__(self, from_round: _Optional[int] = ..., to_round: _Optional[int] = ..., codec: _Optional[str] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("local_steps", "batch_size", "learning_rate", "weight_decay", "clip_norm", "labels", "start", "supermask", "optimizer", "proximal", "slots", "calibration")
    LOCAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    SUPERMASK_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    PROXIMAL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    local_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    clip_norm: float
    labels: str
    start: str
    supermask: float
    optimizer: str
    proximal: float
    slots: str
    calibration: float
    def __init__(self, local_steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate: _Optional[float] = ..., weight_decay: _Optional[float] = ..., clip_norm: _Optional[float] = ..., labels: _Optional[str] = ..., start: _Optional[str] = ..., supermask: _Optional[float] = ..., optimizer: _Optional[str] = ..., proximal: _Optional[float] = ..., slots: _Optional[str] = ..., calibration: _Optional[float] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("run", "round", "update", "refusal", "failure")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    round: int
    update: Update
    refusal: Refusal
    failure: Failure
    def __init__(self, run: _Optional[bytes] = ..., round: _Optional[int] = ..., update: _Optional[_Union[Update, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("weight", "metrics", "sizes")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    weight: float
    metrics: _containers.ScalarMap[str, float]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, weight: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ..., sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: str
    detail: str
    def __init__(self, reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("error", "trace")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    error: str
    trace: str
    def __init__(self, error: _Optional[str] = ..., trace: _Optional[str] = ...) -> None: ...
