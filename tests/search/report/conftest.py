"""Results that the tests of the report's page share."""

import pytest
import report_cases


@pytest.fixture(scope="module")
def digits():
    return report_cases.make("digits", 120)


@pytest.fixture(scope="module")
def small():
    """Two evaluations, no budget, no final figures, no predictor, no latency."""
    result = report_cases.make("digits", 2, budgets=False, predictor=False, latency=False)
    return {**result, "final": []}


@pytest.fixture(scope="module")
def hostile():
    """HTML in every name that a user, a file or a class can bring."""
    result = report_cases.make("digits", 40, workdir=report_cases.HOSTILE)
    for row in result["evaluations"]:
        row["phase"] = report_cases.HOSTILE
    for budget, row in zip(result["budgets"], result["final"], strict=False):
        budget["name"] = row["name"] = report_cases.HOSTILE + budget["name"]
    result["config"]["data"]["root"] = report_cases.HOSTILE
    result["config"][report_cases.HOSTILE] = report_cases.HOSTILE
    result["latency"]["device"] = report_cases.HOSTILE
    result["run"] |= {"strategy": report_cases.HOSTILE, "device": report_cases.HOSTILE}
    stages = result["space"]["stages"]
    result["space"]["stages"] = {name + report_cases.HOSTILE: stage for name, stage in stages.items()}
    return result
