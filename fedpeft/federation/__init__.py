"""Rounds: a client, a server, and the journal between what was decided and what takes effect."""

from fedpeft.federation.client import Client
from fedpeft.federation.client_state import ClientStore
from fedpeft.federation.events import Event, Happening, Watch, everyone, unwatched
from fedpeft.federation.journal import Journal
from fedpeft.federation.optimizer import ServerOptimizer
from fedpeft.federation.plan import Plan
from fedpeft.federation.policy import Policy
from fedpeft.federation.replies import largest_reply
from fedpeft.federation.server import Server
from fedpeft.federation.state import ServerState
from fedpeft.federation.tasks import largest_task
from fedpeft.federation.transport import Arrival, Common, Handler, NodeId, Parcel, Transport

__all__ = [
    "Arrival",
    "Client",
    "ClientStore",
    "Common",
    "Event",
    "Handler",
    "Happening",
    "Journal",
    "NodeId",
    "Parcel",
    "Plan",
    "Policy",
    "Server",
    "ServerOptimizer",
    "ServerState",
    "Transport",
    "Watch",
    "everyone",
    "largest_reply",
    "largest_task",
    "unwatched",
]
