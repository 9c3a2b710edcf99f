"""What `docs/matrix.md` says around its tables."""

from __future__ import annotations

OPENING = """# The deviation matrix

Made by `audit matrix` (`make matrix`): alpha {alpha:g}, honest recipe `{recipe}`, an audited log of
{requests} requests ({tokens:,} tokens) and three times as many to calibrate. At each logged prefix the
deviation draws its own token; its activation fingerprints ({kind}) are those of the states it really
computes. Logs are made of those requests as a server writes them that has eight in flight (the first token
of one, two, ... eight requests, the second of each, and so on, then whole requests), drawn with
replacement, {audits} of each size. These are powers on this log's requests, not on other traffic. Seeds:
calibration 41,000,000, report 42,000,000, draws 43,000,000, honest audits 45,000,000; diagnoses were tuned
on 44,000,000, of which nothing is shown here.

{caught} of {rows} rows are caught with power 0.99 within the largest sample tried; the others stand in the
same table, with `>` and that sample.

## Honest providers

{honest_audits}

Logs of the report's honest requests, drawn with replacement like the rows' ({honest_logs:,} of each size):
at most {fused:.4f} convicted by the verdict (95 %: {low:.4f} to {high:.4f}), {alone:.4f} without
fingerprints, {states:.4f} above the bar of fingerprints alone, {published:.4f} by the published statistic,
{one_look:.4f} at one look, {same_promise:.4f} with the same promise.

## Beside the published statistic

The mean margin clipped at 0.5. It gets the lowest threshold that keeps its rate on these requests too: at
each size, the larger of the quantiles of honest calibration logs and of the report's honest logs. (The
calibration's alone convicted up to 0.16 of the report's honest logs at a nominal 0.01.) A verdict gets no
such look at the requests it is about: its bar is 1 / {alpha:g}, whatever the traffic, at every look at once.
*One look* is our e-value of tokens above a threshold found as the published one's: what it saves is what
that promise costs. *Same promise* is all that we look at, tokens and fingerprints, promising no more than
the published statistic does: the fused e-value convicts {e_value_share:g} of alpha of these honest logs, and
beside it the mean margin has the lowest threshold with which both together convict alpha at most. That
compares what is looked at: with the mean margin among it no row can do much worse, and where states differ
it does better. It is no verdict: the next traffic may differ, and somebody will look again.
Tokens for power 0.99, ours over the published, on the same logs:

| | rows that both catch | geometric mean | rows where ours needs more | only ours | only the published |
|---|---|---|---|---|---|
{beside}

*Floor*: a log in which the provider's every token is the one that the honest provider would have returned
looks the same for both. One that agrees and is convicted is therefore no likelier than a conviction
of the honest provider, at most {alpha:g}, whatever the test of tokens computes:
its power is at most {alpha:g} above the
share of logs that hold a differing token, and 0.99 needs {enough:g} of them to. The floor is the first size
at which they do (on these requests, with their dependence; for
independent tokens that differ at rate d it is ln({miss:g}) / ln(1 - d)). Counting mismatches with the
reference in excess of honest ones gives no bound: where two providers mismatch equally often, sizes of
margins may still differ. It binds tests of tokens, not fingerprints. Its geometric mean over the published
statistic's tokens is {floor} ({floor_rows} rows): so far below can a test of tokens go at best. Ours
without fingerprints needs {over} times the floor."""

KEY = """
## Rows

*mismatches*: of the provider's tokens, those that the reference would not have returned; *fused*: the
verdict's own e-value on logs with fingerprints, tokens for power 0.9, then for 0.99 with the sizes at which
the 95 % bounds of the power reach it; *tokens*, *one look*, *same promise*, *fingerprints*: each for 0.99
(one look, same promise: above thresholds that promise nothing of another look or of other traffic, no
verdicts; fingerprints: the log's mean distance above 1.6 times the 1 - alpha quantile of honest calibration
logs of that size; a dash where no forward differs); *wins*: which of tokens and fingerprints needs
fewer, or what catches a row whose tokens are honest ones. *named*: the diagnosis of logs of twelve
requests of a row that is caught (tokens and fingerprints), and in brackets where it differs without the
row's own entry among the hypotheses. *spans*: for rows that do not act throughout, how many of the
requests were flagged, the share of the flagged tokens where it acted (and of all tokens), and the
intersection over union. Rows of *acceptance* and *accounting*, and others that change what comes after,
are decoded by the dishonest provider and its own log is scored:
beside it stand honest fingerprints, which its diagnosis does not use, and it is not searched for spans. A
diagnosis has the draft model at hand; in brackets, for rows whose provider runs or guesses with it, it has
not."""
