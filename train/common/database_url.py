"""The URL of a database as it may be shown and kept: it often holds a password."""

HIDDEN = "***"


def masked(url: str) -> str:
    """``url`` without its password and without its query, which may hold one too."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        known = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        return HIDDEN if set(url) & set(":@?") else url
    shown = known.set(query={}).render_as_string(hide_password=True)
    return f"{shown}?{HIDDEN}" if known.query else shown


def without(text: str, url: str) -> str:
    """``text``, an error about ``url``, without the URL, its password and its query."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    text = text.replace(url, masked(url))
    try:
        known = make_url(url)
    except (ArgumentError, ValueError):
        return text
    secrets = [known.password, *(value for values in known.normalized_query.values() for value in values)]
    for secret in filter(None, secrets):
        text = text.replace(secret, HIDDEN)
    return text
