"""The suite a vendor runs on a candidate; nothing here knows which image or candidate it has.

pytest tests/qualification --lab lab.toml --image win11 --candidate candidate.toml \
        --content content/released --content content/next
"""
