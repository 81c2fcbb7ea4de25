"""The image and the cloud template: linted, asserted, and, where the tools are installed, built and run."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
GB = 1024
FARGATE = {  # MB of memory that can be had with so many units of CPU
    256: (512, GB, 2 * GB),
    512: range(GB, 4 * GB + 1, GB),
    1024: range(2 * GB, 8 * GB + 1, GB),
    2048: range(4 * GB, 16 * GB + 1, GB),
}


def tool(name: str) -> str:
    """Path of a program, beside this Python or elsewhere; the test is skipped where there is none."""
    path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return path or pytest.skip(f"{name} is not installed")


def test_the_dockerfile_is_clean():
    done = subprocess.run([tool("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_serving_image_has_what_running_it_needs():
    text = (DEPLOY / "Dockerfile").read_text()
    stage = text[text.index("AS serve") :]
    assert "USER 10001" in stage and "HEALTHCHECK" in stage and "STOPSIGNAL SIGTERM" in stage
    assert "ORT_DISABLE_TELEMETRY=1" in stage and "requirements.lock" in text and "torch" not in stage
    assert text.count("FROM ") == 4 and "AS course" in text


# ------------------------------------------------------------------------------------------------- template


class Short(str):
    """A value of CloudFormation's short forms, such as !Ref Image."""


class Loader(yaml.SafeLoader):
    """YAML with CloudFormation's tags."""


def _short(loader: Loader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return Short(f"{tag} {node.value}")
    return {tag: loader.construct_sequence(node, deep=True)}


Loader.add_multi_constructor("!", _short)


@pytest.fixture
def template() -> dict:
    return yaml.load((DEPLOY / "ecs.yaml").read_text(), Loader)


def problems(template: dict) -> list[str]:
    """What cfn-lint doesn't notice and a deployment would."""
    resources, found = template["Resources"], []

    def check(right: bool, what: str) -> None:
        if not right:
            found.append(what)

    def properties(name: str) -> dict:
        return resources[name]["Properties"]

    task, service, targets = properties("Task"), properties("Service"), properties("Targets")
    (container,) = task["ContainerDefinitions"]
    (balancer,) = service["LoadBalancers"]
    port = container["PortMappings"][0]["ContainerPort"]
    health = container.get("HealthCheck", {})
    roles = {task.get("ExecutionRoleArn"), task.get("TaskRoleArn")}
    check(task.get("ExecutionRoleArn") == "GetAtt ExecutionRole.Arn", "execution role")
    check(task.get("TaskRoleArn") == "GetAtt TaskRole.Arn" and len(roles) == 2, "task role")
    check("Policies" not in properties("TaskRole") and "ManagedPolicyArns" not in properties("TaskRole"), "task rights")
    allowed = [s for p in properties("ExecutionRole")["Policies"] for s in p["PolicyDocument"]["Statement"]]
    star = [s for s in allowed if s["Resource"] == "*" and s["Action"] != "ecr:GetAuthorizationToken"]
    check(not star and "*" not in str([s["Action"] for s in allowed]), "execution rights")
    check("ManagedPolicyArns" not in properties("ExecutionRole"), "managed rights")
    check(targets.get("TargetType") == "ip", "target type")
    check(balancer["ContainerName"] == container["Name"], "container name")
    check(balancer["ContainerPort"] == port == targets["Port"], "container port")
    check(properties("TaskGroup")["SecurityGroupIngress"][0]["ToPort"] == port, "security group")
    check(f":{port}/" in str(health.get("Command")), "address of the health check")
    check(5 <= health.get("Interval", 0) <= 300 and 2 <= health.get("Timeout", 0) <= 60, "health check's bounds")
    check(health.get("Timeout", 99) < health.get("Interval", 0) and 1 <= health.get("Retries", 0) <= 10, "health check")
    check(0 <= health.get("StartPeriod", -1) <= 300, "health check's start")
    check(targets["HealthCheckTimeoutSeconds"] < targets["HealthCheckIntervalSeconds"], "targets' health check")
    check(resources["Service"].get("DependsOn") == "Listener", "service before listener")
    check(container.get("ReadonlyRootFilesystem") is True and container.get("User") not in (None, "0", "root"), "user")
    check("Secrets" not in container and "Environment" not in container, "secrets")
    check(container["StopTimeout"] > 25, "stop timeout below the server's 25 seconds")
    check(container["LogConfiguration"]["Options"]["awslogs-group"] == "Ref Logs", "log group")
    check(service["NetworkConfiguration"]["AwsvpcConfiguration"]["SecurityGroups"] == ["Ref TaskGroup"], "groups")
    check(task["NetworkMode"] == "awsvpc", "network mode")
    metrics = {
        policy["Properties"]["TargetTrackingScalingPolicyConfiguration"]["PredefinedMetricSpecification"][
            "PredefinedMetricType"
        ]
        for policy in resources.values()
        if policy["Type"].endswith("ScalingPolicy")
    }
    for name, size in template["Mappings"]["Sizes"].items():  # cfn-lint doesn't look behind a mapping
        check(int(size["Memory"]) in FARGATE.get(int(size["Cpu"]), ()), f"size {name}")
    check(metrics == {"ECSServiceAverageCPUUtilization", "ALBRequestCountPerTarget"}, "scaling")
    return found


def test_the_template_is_clean(template: dict):
    done = subprocess.run([tool("cfn-lint"), str(DEPLOY / "ecs.yaml")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert problems(template) == []


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("      ExecutionRoleArn: !GetAtt ExecutionRole.Arn\n", "", "execution role"),
        ("TargetType: ip", "TargetType: instance", "target type"),
        ("ContainerName: serve", "ContainerName: server", "container name"),
        ("ContainerPort: 8000, TargetGroupArn", "ContainerPort: 80, TargetGroupArn", "container port"),
        ("            Interval: 10\n", "            Interval: 4\n", "health check's bounds"),
        ("            Timeout: 5\n", "            Timeout: 61\n", "health check's bounds"),
        ("            Retries: 3\n", "            Retries: 11\n", "health check"),
        ("http://127.0.0.1:8000/health", "http://127.0.0.1:80/health", "address of the health check"),
        ("    DependsOn: Listener\n", "", "service before listener"),
        ("StopTimeout: 30", "StopTimeout: 10", "stop timeout below the server's 25 seconds"),
        ('Cpu: "1024", Memory: "2048"', 'Cpu: "1024", Memory: "1024"', "size one"),
        ('Cpu: "256", Memory: "512"', 'Cpu: "300", Memory: "512"', "size quarter"),
        ("TaskRoleArn: !GetAtt TaskRole.Arn", "TaskRoleArn: !GetAtt ExecutionRole.Arn", "task role"),
    ],
)
def test_planted_faults_are_noticed(old: str, new: str, what: str):
    text = (DEPLOY / "ecs.yaml").read_text()
    assert text.count(old) == 1
    assert what in problems(yaml.load(text.replace(old, new), Loader))


def test_the_health_check_is_a_program(template: dict):
    (container,) = template["Resources"]["Task"]["Properties"]["ContainerDefinitions"]
    assert container["HealthCheck"]["Command"][:3] == ["CMD", "python", "-c"]
    compile(container["HealthCheck"]["Command"][3], "health check", "exec")


# ---------------------------------------------------------------------------------------------------- image


@pytest.mark.skipif(os.environ.get("MTL_IMAGE") != "1", reason="building an image takes minutes: set MTL_IMAGE=1")
def test_the_image_is_built_and_serves(exported: Callable[[str], Path]):
    model = ROOT / "out" / "tiny"
    shutil.copytree(exported("bert"), model, dirs_exist_ok=True)
    try:
        command = ["bash", str(DEPLOY / "try_image.sh"), "out/tiny"]
        environment = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    finally:
        shutil.rmtree(model)
    if done.returncode == 77:
        pytest.skip(re.sub(r".*skipped: ", "", done.stderr.strip().splitlines()[-1]))
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    assert measured["ready_seconds"] < 30 and measured["image_mb"] < 800
