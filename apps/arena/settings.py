"""What an arena's owner can set. `palate arena --settings FILE.yaml` reads these names."""

from __future__ import annotations

from dataclasses import dataclass, field

from palate.errors import UserError


@dataclass(frozen=True)
class Limits:
    """How much one visitor, network, prompt or model gets; counted in the database, so over all workers."""

    battles_per_minute: int = 60
    """Battles that one voter may ask for in a minute."""
    network_battles_per_minute: int = 600
    """Battles that one network (IPv4 /24, IPv6 /48) may ask for in a minute."""
    network_voters_per_day: int = 200
    """New voters from one network in a day."""
    votes_per_day: int = 1000
    """Votes of one voter in a day."""
    votes_per_model_per_day: int = 300
    """Votes of one voter on battles of one model in a day."""
    model_votes_per_day: int = 100000
    """Votes on one model by everybody in a day."""
    battles_per_prompt: int = 4
    """Battles on one prompt that one voter gets."""
    live_per_hour: int = 30
    """Live battles that one voter may ask for in an hour."""
    network_live_per_hour: int = 120
    """Live battles that one network may ask for in an hour."""
    prompt_live_per_hour: int = 20
    """Live battles on one and the same prompt in an hour, over all voters."""
    prompt_characters: int = 2000
    """Length of a prompt that a voter types."""
    upload_bytes: int = 10_000_000
    """Size of a picture that a voter uploads, bytes."""
    upload_pixels: int = 16_000_000
    """Width times height of a picture that a voter uploads."""
    logins: int = 5
    """Wrong admin passwords within 15 minutes before the login is closed."""


@dataclass(frozen=True)
class Checks:
    """Battles that measure voters rather than models. None of them counts in ratings or exports."""

    gold_share: float = 0.03
    """Share of battles with a known answer: an output against a spoilt copy of it."""
    repeat_share: float = 0.03
    """Share of battles that show a voter an earlier battle again, sides drawn anew."""
    after: int = 5
    """Votes of a voter before the first check."""


@dataclass(frozen=True)
class Matching:
    """How pairs of models are drawn (`apps.arena.matchmaking`)."""

    floor: float = 0.1
    """Share of battles drawn uniformly."""
    newcomer_share: float = 0.2
    """Share of battles that show a newcomer while there is one."""
    newcomer_battles: int = 50
    """Battles after which a model is a newcomer no more."""


@dataclass(frozen=True)
class Live:
    """Battles on prompts that voters type, where models are loaded (`--live`, `--live-vlm`)."""

    steps: int = 25
    """Denoising steps."""
    guidance: float = 7.5
    """Classifier-free guidance scale."""
    answer_tokens: int = 512
    """New tokens of an answer."""
    temperature: float = 0.7
    """Of the tokens of an answer."""
    queue: int = 50
    """Battles that may wait at a time."""
    release_seconds: int = 5
    """A finished battle is shown at the next multiple of this after it was begun, so that time tells nothing."""


@dataclass(frozen=True)
class ArenaSettings:
    """An arena's settings."""

    title: str = "Which one is better?"
    """Heading of the voting page."""
    battle_minutes: int = 30
    """Minutes for which a battle may be judged."""
    reveal_seconds: int = 10
    """Seconds in which a vote can be taken back, unless its reveal was asked for."""
    personal_board_votes: int = 30
    """Votes after which a voter sees a board of their own."""
    trusted_proxies: list[str] = field(default_factory=list)
    """Addresses or networks (CIDR) of proxies whose X-Forwarded-For is believed."""
    address_days: int = 7
    """Days after which the keyed hash of an address is erased; its salt changes every day."""
    board_seconds: int = 30
    """Least seconds between two computations of the board."""
    bootstraps: int = 1000
    """Bootstrap draws of the board."""
    limits: Limits = field(default_factory=Limits)
    """Limits and caps."""
    checks: Checks = field(default_factory=Checks)
    """Gold and repeated battles."""
    matching: Matching = field(default_factory=Matching)
    """Matchmaking."""
    live: Live = field(default_factory=Live)
    """Live battles."""

    def __post_init__(self) -> None:
        import ipaddress

        for name in ("battle_minutes", "reveal_seconds", "personal_board_votes", "address_days", "board_seconds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.live.release_seconds < 1 or self.live.queue < 1:
            raise UserError("live.release_seconds and live.queue must be at least 1.")
        share = self.checks.gold_share + self.checks.repeat_share
        if min(self.checks.gold_share, self.checks.repeat_share) < 0 or share > 0.5:
            raise UserError(
                f"checks.gold_share and checks.repeat_share are shares that sum to at most .5; got {share:g}."
            )
        for address in self.trusted_proxies:
            try:
                ipaddress.ip_network(address, strict=False)
            except ValueError:
                raise UserError(
                    f"trusted_proxies: '{address}' is no address or network. Write 10.0.0.7 or 10.0.0.0/8."
                ) from None
