"""What scripts of figures share: flags, settings, files, the check of the claims, bars, style, threads, finished parts.

- `figure`: `main` computes, checks, draws and writes one figure; `Claim`, `progress` and the style.
- `cores`: threads inside a figure, and how figures that are made at once share the processor cores.
- `resume`: what a long run has already computed, kept in files.

A script imports them from here, so that it runs from any folder, and so does a copy of it.
"""
