"""Who may take part: an authority, certificates and a roster, as files.

The coordinator's folder holds `ca.key ca.crt server.key server.crt roster/ revoked/`, a site's `site.key site.crt
ca.crt`. A private key stays where it was made: a site sends a request, the coordinator signs it.
"""

from fedpeft.keys.authority import AUTHORITY_DAYS, SERVER_DAYS, SITE_DAYS, init, renew_server, requested, sign
from fedpeft.keys.pair import expires, fingerprint, nobody, pair, trusted
from fedpeft.keys.roster import Member, Roster, identify, revoke, roster
from fedpeft.keys.site import install, request

__all__ = [
    "AUTHORITY_DAYS",
    "SERVER_DAYS",
    "SITE_DAYS",
    "Member",
    "Roster",
    "expires",
    "fingerprint",
    "identify",
    "init",
    "install",
    "nobody",
    "pair",
    "renew_server",
    "request",
    "requested",
    "revoke",
    "roster",
    "sign",
    "trusted",
]
