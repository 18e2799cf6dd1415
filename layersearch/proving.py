"""The command ``verify-export``: proves an export and prints the proof."""

from __future__ import annotations

import argparse
import json

from layersearch.errors import EXIT_NOT_PROVEN


def verify_export(options: argparse.Namespace) -> int:
    """Prove an exported folder; return 0, or 1 if it does not do what its schedule says."""
    from layersearch.schedulefile import schedule_argument
    from layersearch.tables import proof_table
    from layersearch.verify import verify

    proof = verify(
        options.folder,
        schedule=None if options.schedule is None else schedule_argument(options.schedule),
        trust_remote_code=options.trust_remote_code,
        attention=options.attention,
    )
    if options.json:
        print(json.dumps(proof.to_dict(), indent=1))
    else:
        proof_table(proof)
    return 0 if proof.proven else EXIT_NOT_PROVEN
