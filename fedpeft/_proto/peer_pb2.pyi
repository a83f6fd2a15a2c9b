from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Segment(_message.Message):
    __slots__ = ("epoch", "peer", "number", "body", "signature")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    peer: int
    number: int
    body: bytes
    signature: bytes
    def __init__(self, epoch: _Optional[int] = ..., peer: _Optional[int] = ..., number: _Optional[int] = ..., body: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Fork(_message.Message):
    __slots__ = ("epoch", "peer", "number", "previous", "bodies", "signatures")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    BODIES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    peer: int
    number: int
    previous: bytes
    bodies: _containers.RepeatedScalarFieldContainer[bytes]
    signatures: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, epoch: _Optional[int] = ..., peer: _Optional[int] = ..., number: _Optional[int] = ..., previous: _Optional[bytes] = ..., bodies: _Optional[_Iterable[bytes]] = ..., signatures: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("peer", "count", "hash")
    PEER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    peer: int
    count: int
    hash: bytes
    def __init__(self, peer: _Optional[int] = ..., count: _Optional[int] = ..., hash: _Optional[bytes] = ...) -> None: ...

class Cut(_message.Message):
    __slots__ = ("epoch", "before", "heads", "barred", "roster", "state")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    BARRED_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    before: bytes
    heads: _containers.RepeatedCompositeFieldContainer[Head]
    barred: _containers.RepeatedScalarFieldContainer[int]
    roster: bytes
    state: bytes
    def __init__(self, epoch: _Optional[int] = ..., before: _Optional[bytes] = ..., heads: _Optional[_Iterable[_Union[Head, _Mapping]]] = ..., barred: _Optional[_Iterable[int]] = ..., roster: _Optional[bytes] = ..., state: _Optional[bytes] = ...) -> None: ...

class Vote(_message.Message):
    __slots__ = ("epoch", "view", "kind", "peer", "cut", "signature")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    view: int
    kind: int
    peer: int
    cut: bytes
    signature: bytes
    def __init__(self, epoch: _Optional[int] = ..., view: _Optional[int] = ..., kind: _Optional[int] = ..., peer: _Optional[int] = ..., cut: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("view", "valid_view", "cut", "signature")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    VALID_VIEW_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    view: int
    valid_view: int
    cut: Cut
    signature: bytes
    def __init__(self, view: _Optional[int] = ..., valid_view: _Optional[int] = ..., cut: _Optional[_Union[Cut, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("number", "name", "key", "certificate", "addresses")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: str
    key: bytes
    certificate: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, number: _Optional[int] = ..., name: _Optional[str] = ..., key: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("serial", "members", "signature")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    serial: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    signature: bytes
    def __init__(self, serial: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("cut", "view", "votes", "roster", "next", "state")
    CUT_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    cut: Cut
    view: int
    votes: _containers.RepeatedCompositeFieldContainer[Vote]
    roster: Roster
    next: Roster
    state: bytes
    def __init__(self, cut: _Optional[_Union[Cut, _Mapping]] = ..., view: _Optional[int] = ..., votes: _Optional[_Iterable[_Union[Vote, _Mapping]]] = ..., roster: _Optional[_Union[Roster, _Mapping]] = ..., next: _Optional[_Union[Roster, _Mapping]] = ..., state: _Optional[bytes] = ...) -> None: ...

class Greeting(_message.Message):
    __slots__ = ("run", "peer", "address", "known")
    class KnownEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    peer: int
    address: str
    known: _containers.ScalarMap[int, str]
    def __init__(self, run: _Optional[bytes] = ..., peer: _Optional[int] = ..., address: _Optional[str] = ..., known: _Optional[_Mapping[int, str]] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("view", "kind", "members")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    view: int
    kind: int
    members: bytes
    def __init__(self, view: _Optional[int] = ..., kind: _Optional[int] = ..., members: _Optional[bytes] = ...) -> None: ...

class Heads(_message.Message):
    __slots__ = ("run", "epoch", "root", "digest", "heads", "votes", "forked", "roster", "probes")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    FORKED_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    epoch: int
    root: bytes
    digest: bytes
    heads: _containers.RepeatedCompositeFieldContainer[Head]
    votes: _containers.RepeatedCompositeFieldContainer[Held]
    forked: _containers.RepeatedCompositeFieldContainer[Head]
    roster: int
    probes: _containers.RepeatedCompositeFieldContainer[Head]
    def __init__(self, run: _Optional[bytes] = ..., epoch: _Optional[int] = ..., root: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., heads: _Optional[_Iterable[_Union[Head, _Mapping]]] = ..., votes: _Optional[_Iterable[_Union[Held, _Mapping]]] = ..., forked: _Optional[_Iterable[_Union[Head, _Mapping]]] = ..., roster: _Optional[int] = ..., probes: _Optional[_Iterable[_Union[Head, _Mapping]]] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("peer", "first", "last")
    PEER_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    peer: int
    first: int
    last: int
    def __init__(self, peer: _Optional[int] = ..., first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class Wanted(_message.Message):
    __slots__ = ("run", "epoch", "ranges", "votes", "forked", "roster")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    FORKED_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    epoch: int
    ranges: _containers.RepeatedCompositeFieldContainer[Range]
    votes: _containers.RepeatedCompositeFieldContainer[Held]
    forked: _containers.RepeatedScalarFieldContainer[int]
    roster: bool
    def __init__(self, run: _Optional[bytes] = ..., epoch: _Optional[int] = ..., ranges: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., votes: _Optional[_Iterable[_Union[Held, _Mapping]]] = ..., forked: _Optional[_Iterable[int]] = ..., roster: _Optional[bool] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("run", "epoch", "segments", "forks", "votes", "proposals", "roster", "silent")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    FORKS_FIELD_NUMBER: _ClassVar[int]
    VOTES_FIELD_NUMBER: _ClassVar[int]
    PROPOSALS_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    epoch: int
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    forks: _containers.RepeatedCompositeFieldContainer[Fork]
    votes: _containers.RepeatedCompositeFieldContainer[Vote]
    proposals: _containers.RepeatedCompositeFieldContainer[Proposal]
    roster: Roster
    silent: int
    def __init__(self, run: _Optional[bytes] = ..., epoch: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., forks: _Optional[_Iterable[_Union[Fork, _Mapping]]] = ..., votes: _Optional[_Iterable[_Union[Vote, _Mapping]]] = ..., proposals: _Optional[_Iterable[_Union[Proposal, _Mapping]]] = ..., roster: _Optional[_Union[Roster, _Mapping]] = ..., silent: _Optional[int] = ...) -> None: ...

class Taken(_message.Message):
    __slots__ = ("epoch", "taken")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    taken: int
    def __init__(self, epoch: _Optional[int] = ..., taken: _Optional[int] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("run", "after", "lean")
    RUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LEAN_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    after: int
    lean: bool
    def __init__(self, run: _Optional[bytes] = ..., after: _Optional[int] = ..., lean: _Optional[bool] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
