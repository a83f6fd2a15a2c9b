"""Numbers as the page writes them."""

DASH = "–"
TITLES = {"accuracy": "Accuracy", "loss": "Loss", "train_loss": "Training loss"}


def score(key: str, value: float | None) -> str:
    r"""A score by its key in `TITLES`.

    >>> score("accuracy", 0.5), score("loss", 2), score("loss", None)
    ('50.0\xa0%', '2.000', '–')
    """
    if value is None:
        return DASH
    return f"{100 * value:.1f}\u00a0%" if key == "accuracy" else f"{value:.3f}"


def size(n: float, tick: bool = False) -> str:
    """Bytes in units of a thousand; at the tick of an axis, with no more digits than it needs.

    >>> size(410), size(1500), size(2e6), size(2e6, tick=True)
    ('410 B', '1.5 kB', '2.0 MB', '2 MB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 999.5 or unit == "TB":
            break
        n /= 1000
    return f"{n:{'g' if tick else '.0f' if unit == 'B' else '.1f'}} {unit}"


def duration(seconds: float) -> str:
    """A time in the unit that fits it.

    >>> duration(0.02), duration(12), duration(150), duration(7260)
    ('20 ms', '12.0 s', '2.5 min', '2 h 01 min')
    """
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def bits(sent: float, dense: float) -> str:
    """Bits per parameter, from the bytes sent and those of fp32.

    >>> bits(25, 100), bits(1, 0)
    ('8.000', '–')
    """
    return f"{32 * sent / dense:.3f}" if dense else DASH


def ratio(sent: float, dense: float) -> str:
    """The share of the bytes that were sent.

    >>> ratio(25, 100), ratio(0, 100)
    ('1/4.0', '–')
    """
    return f"1/{dense / sent:.1f}" if sent and dense else DASH


def many(n: int, noun: str) -> str:
    """A number of things.

    >>> many(1, "site"), many(2000, "site")
    ('1 site', '2,000 sites')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def short(name: str) -> str:
    r"""A name that fits beside a bar.

    >>> short("hospital"), short("hospital-of-the-north"), short("a\nb")
    ('hospital', 'hospital-of-the-n…', 'a?b')
    """
    text = "".join(letter if letter.isprintable() else "?" for letter in name)
    return text if len(text) <= 18 else text[:17] + "…"
