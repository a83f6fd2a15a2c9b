"""The two installations of a federation: a server that sites dial, and a site that dials it."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from fedpeft import codecs
from fedpeft._proto import session_pb2 as pb
from fedpeft.config import Experiment, SiteConfig
from fedpeft.durable import hold
from fedpeft.errors import ConfigError, QuorumError, Reason, RefusedError, SiteError, SpaceError
from fedpeft.federation import (
    Client,
    ClientStore,
    Event,
    Happening,
    Transport,
    Watch,
    largest_reply,
    largest_task,
    unwatched,
)
from fedpeft.preparation import Prepared, Say, prepare
from fedpeft.run import Run
from fedpeft.runtime.grpc.server import GrpcTransport, Limits
from fedpeft.runtime.grpc.site import Dialling, Site
from fedpeft.space import Space

_LONGEST_PAUSE_S = 60.0
_FAREWELL_S = 30.0


class Deployment(Run):
    """An experiment whose sites dial in, ready to run or to be taken up where it stopped.

    A round opens when the quorum of the experiment's sites is connected (one site where there is a buffer). One that
    ends below quorum is taken up again, for ever, with whoever is connected then: sites come and go.

    Args:
        experiment: what to run; its partition is not used, for each site has its own data.
        folder: of the run; made if it does not exist.
        keys: the coordinator's folder (`fedpeft.keys`).
        address: to listen on, "host:port".
        say: told what is being prepared.
        watch: told of what happens.
        keepalive_s: seconds of silence after which a site is asked whether it lives.

    Raises:
        ConfigError: the base model, the data or an expression cannot be used.
        JournalError: another process works on the folder, or its run is another.
        IdentityError: the keys cannot be used.
        RunError: the address cannot be listened on.
    """

    free = frozenset({"sites"})

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        keys: Path,
        address: str,
        say: Say = lambda text: None,
        watch: Watch = unwatched,
        keepalive_s: float = 20.0,
    ) -> None:
        self._watch, plan = watch, experiment.plan()

        def listen(prepared: Prepared, folder: Path) -> Transport:
            self.transport = GrpcTransport(
                address,
                keys,
                folder / "spool",
                least=1 if plan.buffer else plan.needed(experiment.sites),
                admit=lambda node, hello: _admit(prepared, hello),
                limits=Limits(largest_reply=largest_reply(plan, prepared.space), keepalive_s=keepalive_s),
                watch=watch,
            )
            return self.transport

        super().__init__(experiment, folder, listen, say, watch)
        try:
            self.transport.start()
        except BaseException:
            super().close()
            raise

    def run(self) -> Iterator[dict[str, Any]]:
        """The rounds that are left, however often one has to be taken up again.

        Raises:
            StoppedError: `stop` was called; the run can be taken up.
            RunError: the run cannot go on.
        """
        pause_s = 1.0
        while True:
            try:
                for metrics in super().run():
                    pause_s = 1.0
                    yield metrics
                return
            except (QuorumError, SiteError) as error:
                facts = {"why": str(error)[:500]}
                self._watch(Event(Happening.FAILED, round=self.server.state.round + 1, facts=facts))
            self.transport.pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def stop(self) -> None:
        """Make `run` raise StoppedError soon; may be called from any thread."""
        self.transport.stop()

    def close(self) -> None:
        """Say good-bye to the sites, and let another process have the folder."""
        if self.server.state.round >= self.experiment.rounds:
            self.transport.farewell(self.server.state.counted, "the run is over", _FAREWELL_S)
        self.transport.close()
        super().close()


class Installation:
    """A site with its base model resident, ready to serve tasks; use it as a context manager.

    Args:
        site: its description.
        say: told what is being prepared, and what happens.

    Raises:
        ConfigError: the base model, the data or an expression cannot be used.
        JournalError: another process works in the site's folder.
    """

    def __init__(self, site: SiteConfig, say: Say = lambda text: None) -> None:
        self._site, self._say = site, say
        site.folder.mkdir(parents=True, exist_ok=True)
        self._lock = hold(site.folder, "is this site")
        try:
            prepared = prepare(site.model, site.peft, site.data.source, site.data.labels, site.data.seed, say)
            if not prepared.train:
                raise ConfigError(f"data.source: {site.data.source} has no example to train on")
            self.space, self.examples = prepared.space, len(prepared.train)
            self._labels = prepared.labels
            own = [codecs.parse(text, imports=True) for text in site.codecs]
            self.client = Client(
                prepared.trainer,
                prepared.trainer.encode(prepared.train),
                prepared.space,
                ClientStore(site.folder / "client.state", prepared.space),
                plugins={repr(codec): codec for codec in own},
                policy=site.policy.policy(),
                rank=site.rank,
                confide=say,
            )
        except BaseException:
            self._lock.close()
            raise

    def dial(self, stay: bool = True) -> Site:
        """What serves the client to the server that the description names.

        Args:
            stay: keep dialling when a run is over, for the next one.
        """
        site = self._site
        return Site(
            Dialling(
                site.server, site.keys, site.server_name, site.first_wait_s, site.longest_wait_s, site.keepalive_s
            ),
            self.client,
            pb.Hello(space=self.space.to_json(), labels=self._labels),
            site.folder / "spool",
            largest_task(self.space),
            stay,
            self._say,
        )

    def __enter__(self) -> "Installation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()


def _admit(prepared: Prepared, hello: pb.Hello) -> None:
    """A site takes part that has this run's base model, PEFT config and classes."""
    try:
        prepared.space.check(Space.from_json(hello.space))
    except SpaceError as error:
        raise RefusedError(Reason.OTHER_SPACE, str(error)) from None
    ours, theirs = prepared.labels, tuple(hello.labels)
    if ours != theirs:
        first = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        expected, came = (labels[first] if first < len(labels) else None for labels in (ours, theirs))
        raise RefusedError(
            Reason.OTHER_SPACE,
            f"class {first} of {len(ours)}: expected {expected!r}, got {came!r}; set data.labels as in the run",
        )
