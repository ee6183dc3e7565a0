"""Networks that come with the package; `membrane.md` says what the one there is, and on which terms."""
