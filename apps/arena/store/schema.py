"""The arena's tables. Times are milliseconds since 1970; JSON is text.

`events` is the append-only log: nothing updates it, and only a voter's wish to be forgotten deletes from it. `votes` holds
what stands now. `migrations/` makes these tables; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)
Millis = BigInteger
Counted = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only where the key is an INTEGER
Id = String(32)

state = Table(
    "state",
    metadata,
    Column("key", String(40), primary_key=True),
    Column("value", Text, nullable=False),
)
"""Facts of the whole arena: the consent text, the admin password's hash, the catalogue's version."""

models = Table(
    "models",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("kind", String(8), nullable=False),  # image | text
    Column("added", Millis, nullable=False),
    Column("retired", Millis),
)
prompts = Table(
    "prompts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", Id, nullable=False, unique=True),  # of kind, text and question image
    Column("kind", String(8), nullable=False),
    Column("text", Text, nullable=False),
    Column("category", String(80), nullable=False),
    Column("question", Id),  # media of the image that a question is about
    Column("author", Id),  # the voter who typed it: shown to nobody else
    Column("exported", Millis),  # when it went into training pairs
)
media = Table(
    "media",
    metadata,
    Column("id", Id, primary_key=True),  # of the pixels
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
)
outputs = Table(
    "outputs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("prompt", ForeignKey("prompts.id"), nullable=False),
    Column("model", ForeignKey("models.id"), nullable=False),
    Column("digest", Id, nullable=False),  # of the content
    Column("spoilt", Boolean, nullable=False),  # the worse side of a gold battle
    Column("seed", BigInteger),
    Column("media", ForeignKey("media.id")),
    Column("text", Text),
    Column("measures", Text, nullable=False),  # JSON: what style control needs
    UniqueConstraint("prompt", "model", "digest", "spoilt"),
)
voters = Table(
    "voters",
    metadata,
    Column("id", Id, primary_key=True),
    Column("created", Millis, nullable=False),
    Column("consent", Id),  # digest of the text that was agreed to
    Column("owner", Boolean, nullable=False),  # has seen the admin page, so may know who made what
)
battles = Table(
    "battles",
    metadata,
    Column("id", Id, primary_key=True),
    Column("voter", Id),
    Column("network", Id),  # keyed hash of the address, erased after `address_days`
    Column("created", Millis, nullable=False),
    Column("expires", Millis, nullable=False),
    Column("kind", String(8), nullable=False),  # plain | live | gold | repeat
    Column("category", String(80), nullable=False),
    Column("prompt", ForeignKey("prompts.id"), nullable=False),
    Column("output_a", ForeignKey("outputs.id"), nullable=False),
    Column("output_b", ForeignKey("outputs.id"), nullable=False),
    Column("model_a", ForeignKey("models.id"), nullable=False),
    Column("model_b", ForeignKey("models.id"), nullable=False),
    Column("probability", Float),  # of the unordered pair of models; null for gold and repeats
    Column("rule", String(12), nullable=False),
    Column("known", Boolean, nullable=False),  # the voter could know who made an output
    Column("better", String(1)),  # side of the unspoilt output of a gold battle
    Column("repeats", Id),  # the battle that is shown again
    Column("skipped", Millis),
    Index(None, "voter", "created"),
    Index(None, "created"),
)
votes = Table(
    "votes",
    metadata,
    Column("battle", ForeignKey("battles.id"), primary_key=True),
    Column("voter", Id, nullable=False),
    Column("outcome", String(8), nullable=False),
    Column("reasons", Text, nullable=False),
    Column("created", Millis, nullable=False),
    Column("receipt", Id, nullable=False),
    Column("revealed", Millis),
    Index(None, "voter", "created"),
)
events = Table(
    "events",
    metadata,
    Column("id", Counted, primary_key=True),
    Column("at", Millis, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("voter", Id),
    Column("battle", Id),
    Column("data", Text, nullable=False),
    Index(None, "voter"),
    sqlite_autoincrement=True,  # a number is never used twice
)
exclusions = Table(
    "exclusions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("what", String(8), nullable=False),  # voter | battle | prompt
    Column("target", Id, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created", Millis, nullable=False),
    Column("lifted", Millis),
    Index(None, "what", "target"),
)
counters = Table(
    "counters",
    metadata,
    Column("name", String(120), primary_key=True),
    Column("span", BigInteger, primary_key=True, autoincrement=False),  # start of the minute, hour or day
    Column("count", Integer, nullable=False),
    Column("until", Millis, nullable=False),
)
salts = Table(
    "salts",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("value", String(64), nullable=False),
)
"""What keys the hashes of one day's addresses. Gone after `address_days`, and with it the way back to the addresses."""
