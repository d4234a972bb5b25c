"""How far apart results may be that differ in rounding alone."""


def same_divergence(one: float, other: float, logits_apart: float = 2e-4) -> bool:
    """Whether two KL divergences to the same predictions can be of models whose logits are that close.

    A change of the logits of q changes KL(p || q) by at most |q - p|_1 times its largest entry, and |q - p|_1 is at
    most √(2 KL) (Pinsker). So √KL, also of a mean over tokens, changes by at most the largest entry over √2, on every
    processor; relatively that is a lot where the KL is small.

    Args:
        one, other: in nats.
        logits_apart: largest difference of the logits.
    """
    return abs(one**0.5 - other**0.5) <= logits_apart / 2**0.5
