"""The address of a MongoDB: what Sacred's `-m` means by one, and what of it may be kept and shown."""

import re

HOST = r"(?:\[[0-9A-Fa-f:.%]+\]|[\w.%-]+)(?::[0-9]{1,5})?"
ADDRESS = re.compile(
    rf"(?P<scheme>mongodb(?:\+srv)?://)?(?:(?P<user>[^:@/?#\s]*)(?P<password>:[^@/?#\s]*)?@)?"
    rf"(?P<place>{HOST}(?:,{HOST})*(?:/[\w.%-]+)?)/?(?:\?.*)?",
    re.DOTALL,
)
UNKNOWN = "mongodb://***"  # all that is kept of what is no address


def without_credentials(url):
    """Scheme, user, hosts and database of an address; no password, no options, nothing of what is no address."""
    if not url:
        return ""
    parts = ADDRESS.fullmatch(url)
    if not parts:
        return UNKNOWN
    user = parts["user"] + (":***" if parts["password"] else "") + "@" if parts["user"] is not None else ""
    return f"{parts['scheme'] or ''}{user}{parts['place']}"


def of_option(option):
    """The address that Sacred's `-m` means: DATABASE, HOST:PORT or HOST:PORT:DATABASE."""
    host, _, database = option.rpartition(":")
    if "://" in option:
        return option
    if database.isdigit():
        host, database = option, "sacred"
    return f"mongodb://{host or '127.0.0.1:27017'}/{database}"
