"""Which of Flower's nodes is which site: Flower's ids change with every run, a site's name does not."""

import re
from collections.abc import Collection, Mapping

from fedpeft.federation import Event, Happening, NodeId, Watch
from fedpeft.runtime.flower.post import Post, Trouble

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TTL_S = 120.0


class Roster:
    """The sites that are there. A node registered with a name is the site of that name; any other is asked for its.

    Args:
        post: reaches the nodes.
        watch: told who comes, who goes and who may not take part.
    """

    def __init__(self, post: Post, watch: Watch) -> None:
        self._post, self._watch = post, watch
        self._asked: dict[str, int] = {}
        self._said: dict[int, str] = {}
        self._silent: dict[int, str] = {}
        self._doubts: dict[int, str] = {}
        self._sites: dict[NodeId, int] = {}
        self.clash = self.waiting = False

    @property
    def doubts(self) -> Collection[str]:
        """Why some nodes that are there cannot take part."""
        return sorted(self._doubts.values())

    def refresh(self) -> Mapping[NodeId, int]:
        """The sites that are there now, and Flower's id of each.

        Sets `clash` if two claim one name, and `waiting` while a node that is there has not said its name.
        """
        online = self._post.online()
        for known in (self._said, self._silent):
            for node in known.keys() - online.keys():
                del known[node]
        self._ask(online.keys() - self._said.keys() - self._silent.keys() - set(self._asked.values()), online)
        self._listen()
        self.waiting = bool(online.keys() - self._said.keys() - self._silent.keys())
        sites, doubts, self.clash = self._match(online)
        for node in doubts.keys() - self._doubts.keys():
            self._watch(Event(Happening.REJECTED, facts={"why": doubts[node]}))
        for name in sites.keys() - self._sites.keys():
            self._watch(Event(Happening.CONNECTED, name))
        for name in self._sites.keys() - sites.keys():
            self._watch(Event(Happening.DISCONNECTED, name, facts={"why": "Flower has lost its node"}))
        self._sites, self._doubts = sites, doubts
        return sites

    def _ask(self, nodes: Collection[int], online: Mapping[int, str]) -> None:
        for node in sorted(nodes):
            if online[node]:
                self._said[node] = online[node]
            elif letter := self._post.send(node, "query", b"name", _TTL_S):
                self._asked[letter] = node

    def _listen(self) -> None:
        for batch in self._post.fetch(self._asked):
            for letter, answer in batch:
                node = self._asked.pop(letter)
                if not isinstance(answer, Trouble):
                    self._said[node] = answer[:200].decode(errors="replace")
                elif not answer.passing:
                    self._silent[node] = answer.why

    def _match(self, online: Mapping[int, str]) -> tuple[dict[NodeId, int], dict[int, str], bool]:
        """Sites, doubts, and whether two nodes claim one name: only the coordinator's word decides between them."""
        sites: dict[NodeId, int] = {}
        doubts = {node: f"node {node} did not say which site it is: {why}" for node, why in self._silent.items()}
        clashes = set()
        for node in sorted(self._said.keys() & online.keys(), key=lambda node: (not online[node], node)):
            name = self._said[node]
            if not _NAME.fullmatch(name):
                doubts[node] = f"node {node} has no site's name: expected letters, digits, '.', '_', '-', got {name!r}"
            elif (holder := sites.setdefault(name, node)) != node:
                doubts[node] = f"nodes {holder} and {node} both call themselves {name!r}; give each site its own name"
                if bool(online[holder]) == bool(online[node]):
                    clashes.add(name)
        return {name: node for name, node in sites.items() if name not in clashes}, doubts, bool(clashes)
