"""The Grafana boards, as code: rows of panels, each a question and its PromQL.

`python -m deploy.grafana.boards` writes the JSON that Grafana is provisioned with (dashboards/). Knows nothing of
Grafana's format: that is `panels`.
"""

from pathlib import Path

from deploy.grafana.panels import Board, Panel, to_json

FOLDER = Path(__file__).parent / "dashboards"

SERVICE = Board(
    "moderation-service",
    "Moderation: service",
    (
        (
            "Now",
            (
                Panel(
                    "Oldest upload",
                    (('max(moderation_oldest_waiting_seconds{stream="uploads"})', ""),),
                    "s",
                    "number",
                    4,
                ),
                Panel("Waiting", (("sum(max by (stream) (moderation_waiting))", ""),), "short", "number", 4),
                Panel("Finished a second", (("moderation:finished:rate5m", ""),), "short", "number", 4),
                Panel(
                    "Workers alive",
                    (("sum(max by (weights) (moderation_workers)) or vector(0)", ""),),
                    "none",
                    "number",
                    4,
                ),
                Panel(
                    "Circuit breaker open", (("max(moderation_circuit_breaker_open)", ""),), "bool_yes_no", "number", 4
                ),
                Panel("Dead letters", (("max(moderation_dead_letter)", ""),), "none", "number", 4),
            ),
        ),
        (
            "Traffic",
            (
                Panel(
                    "What is finished, a second",
                    (
                        ("sum(moderation:decided:rate5m)", "decided"),
                        ("sum(moderation:undecided:rate5m)", "undecided"),
                        ("sum(rate(moderation_duplicates_total[5m]))", "known already"),
                        ("sum(rate(moderation_unchanged_total[5m]))", "rescanned, unchanged"),
                    ),
                    width=12,
                ),
                Panel("Images in a forward pass, mean", (("moderation:batch_images:mean_5m", "images"),), width=12),
            ),
        ),
        (
            "Latency",
            (
                Panel(
                    "From an upload to its verdict",
                    (
                        ("moderation:upload_to_verdict_seconds:p50_5m", "median"),
                        ("moderation:upload_to_verdict_seconds:p99_5m", "99 %"),
                    ),
                    "s",
                    width=12,
                ),
                Panel("By stage, 95 %", (("moderation:stage_seconds:p95_5m", "{{stage}}"),), "s", width=12),
            ),
        ),
        (
            "Backlog",
            (
                Panel("Waiting", (("max by (stream) (moderation_waiting)", "{{stream}}"),)),
                Panel("Oldest waiting", (("max by (stream) (moderation_oldest_waiting_seconds)", "{{stream}}"),), "s"),
                Panel(
                    "In work, and waiting for another attempt",
                    (
                        ("sum(max by (stream) (moderation_in_work))", "in work"),
                        ("max(moderation_retrying)", "another attempt"),
                    ),
                ),
            ),
        ),
        (
            "What goes wrong",
            (
                Panel("Claims taken over, an hour", (("sum(increase(moderation_reclaimed_total[1h]))", "claims"),)),
                Panel(
                    "Decoders ended, an hour",
                    (("sum by (cause) (increase(moderation_decoder_restarts_total[1h]))", "{{cause}}"),),
                ),
                Panel(
                    "Entries dated in the future",
                    (
                        ("max by (stream) (moderation_intake_ahead_seconds)", "{{stream}}"),
                        ("max by (stream) (moderation_record_ahead_seconds)", "{{stream}}"),
                    ),
                    "s",
                ),
            ),
        ),
    ),
)

DECISIONS = Board(
    "moderation-decisions",
    "Moderation: decisions",
    (
        (
            "Labels",
            (
                Panel(
                    "Labels decided, share",
                    (
                        (
                            "sum by (label) (rate(moderation_decisions_total[5m]))"
                            " / on () group_left () sum(rate(moderation_decisions_total[5m]))",
                            "{{label}}",
                        ),
                    ),
                    "percentunit",
                    "shares",
                    12,
                ),
                Panel(
                    "p(risked)",
                    tuple(
                        (
                            f"histogram_quantile({q}, sum by (le) (rate(moderation_risked_probability_bucket[5m])))",
                            f"{100 * q:g} %",
                        )
                        for q in (0.5, 0.9, 0.99)
                    ),
                    "percentunit",
                    width=12,
                ),
            ),
        ),
        (
            "Bans and review",
            (
                Panel("Bans a second", (("moderation:bans:rate5m", "{{weights}}"),)),
                Panel(
                    "Bans, share of an hour's decisions",
                    (("moderation:ban_share:ratio1h", "{{weights}}"),),
                    "percentunit",
                ),
                Panel(
                    "Sent to a person, share",
                    (
                        (
                            '(sum(rate(moderation_verdicts_total{review="1"}[5m])) or vector(0))'
                            " / sum(moderation:decided:rate5m)",
                            "review",
                        ),
                    ),
                    "percentunit",
                ),
                Panel("Circuit breaker", (("max(moderation_circuit_breaker_open)", "open"),), width=12),
                Panel("Bans withheld by it", (("max(moderation_withheld)", "withheld"),), width=12),
            ),
        ),
        (
            "Undecided",
            (
                Panel(
                    "Share of 15 minutes, by reason",
                    (("moderation:undecided_share:ratio15m", "{{reason}}"),),
                    "percentunit",
                    width=12,
                ),
                Panel(
                    "Pictures an hour, by reason",
                    (("sum by (reason) (increase(moderation_undecided_total[1h]))", "{{reason}}"),),
                    width=12,
                ),
            ),
        ),
        (
            "Drift",
            (
                Panel(
                    "Labels of 6 hours against what was expected",
                    (
                        ("moderation:label_share:ratio6h", "{{label}} now"),
                        ("max by (label) (moderation_reference_label_share)", "{{label}} expected"),
                    ),
                    "percentunit",
                    "bars",
                ),
                Panel(
                    "Drift of labels",
                    (("moderation:label_drift:psi6h", "stability index"),),
                    about="Below 0.1 nothing happened; above 0.25 the stream is another one.",
                ),
                Panel(
                    "Drift of p(risked)",
                    (("moderation:risked_probability_drift:ks6h", "distance"),),
                    about="The largest distance between what is seen and what was expected; 0.15 is told.",
                ),
            ),
        ),
    ),
)

WEIGHTS = Board(
    "moderation-weights",
    "Moderation: weights",
    (
        (
            "In service",
            (
                Panel("Workers by version", (("max by (weights) (moderation_workers)", "{{weights}}"),), "none"),
                Panel(
                    "Versions and engines",
                    (("count by (weights, engine) (moderation_weights_info)", "{{weights}} on {{engine}}"),),
                    "none",
                ),
                Panel(
                    "Versions in service", (("count(count by (weights) (moderation_workers))", ""),), "none", "number"
                ),
            ),
        ),
        (
            "Promotions",
            (
                Panel(
                    "Versions taken up and refused, an hour",
                    (("sum by (outcome) (increase(moderation_weights_loads_total[1h]))", "{{outcome}}"),),
                ),
                Panel(
                    "Decisions a second by version",
                    (("sum by (weights) (rate(moderation_decisions_total[5m]))", "{{weights}}"),),
                ),
                Panel(
                    "Bans by version, share of an hour",
                    (("moderation:ban_share:ratio1h", "{{weights}}"),),
                    "percentunit",
                ),
            ),
        ),
        (
            "Engine",
            (
                Panel(
                    "Forward pass, 95 %",
                    (('moderation:stage_seconds:p95_5m{stage="forward"}', "{{stage}}"),),
                    "s",
                    width=12,
                ),
                Panel(
                    "Images a second in the forward pass",
                    (
                        (
                            "sum(rate(moderation_batch_images_sum[5m]))"
                            ' / sum(rate(moderation_stage_seconds_sum{stage="forward"}[5m]))',
                            "images a busy second",
                        ),
                    ),
                    width=12,
                ),
            ),
        ),
        (
            "Retraining",
            (
                Panel(
                    "Since the last success",
                    (("time() - max(moderation_retrain_last_success_timestamp_seconds)", ""),),
                    "s",
                    "number",
                ),
                Panel(
                    "Since the last run",
                    (("time() - max(moderation_retrain_last_run_timestamp_seconds)", ""),),
                    "s",
                    "number",
                ),
                Panel(
                    "Last outcome", (("max by (outcome) (moderation_retrain_outcome)", "{{outcome}}"),), "none", "bars"
                ),
            ),
        ),
    ),
)

BOARDS = (SERVICE, DECISIONS, WEIGHTS)


def main() -> None:
    """Writes every board."""
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(to_json(board), encoding="utf-8")


if __name__ == "__main__":
    main()
