"""Print the JSON schema of a bundle's manifest, as it lies in docs/bundle.schema.json.

    python scripts/bundle_schema.py > docs/bundle.schema.json

It is what the reader validates with; what a schema cannot say (docs/bundle.md) the reader checks beside it.
"""

from __future__ import annotations

import json

import msgspec

from pcsr.runtime.manifest import Manifest


def main() -> None:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Manifest)}
    print(json.dumps(schema, indent=2))


if __name__ == "__main__":
    main()
