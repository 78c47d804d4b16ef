"""What a sampler may be told of shares: one rule for the config and for the samplers."""

from collections.abc import Mapping


def refused_shares(kind: str, shares: Mapping[str, float] | None, healthy_share: float | None) -> str:
    """Why `sampler.shares` and `sampler.healthy_share` do not go together, or with the kind of the sampler;
    empty where they do.
    """
    if shares is not None and healthy_share is not None:
        return "shares and healthy_share: give one of the two"
    if kind == "ratio" and shares is None and healthy_share is None:
        return "kind 'ratio' needs shares (by class name) or healthy_share"
    total = 1 if shares is None else sum(shares.values())
    return "" if abs(total - 1) <= 1e-6 else f"shares sum to {total:g}; they must sum to 1"
