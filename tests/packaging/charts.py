"""Renders the Helm chart with Helm's own engine, holds what comes out against Kubernetes' schemas, and lets the gateway check
each configuration in it. Run by scripts/check-packaging; the argument is the hive-gateway program."""

import os
import pathlib
import subprocess
import sys
import tempfile

import helm_python
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "conf/helm/hive-gateway"
GATEWAY = os.path.abspath(sys.argv[1])
KUBERNETES = ["1.28", "1.37"]
# Of Prometheus' operator; no schema comes with Kubernetes.
CUSTOM = {"ServiceMonitor", "PrometheusRule"}
SECRET = "0123456789abcdef0123456789abcdef"

# The older chart's values.yaml, whole, as an operator may have it.
OLDER = {
    "replicaCount": 2, "podLabels": {"cluster": "eu-west-1", "region": "eu"},
    "autoscaling": {"enabled": True, "minReplicas": 1, "maxReplicas": 8, "targetCPUUtilizationPercentage": 75},
    "podDisruptionBudget": {"enabled": True, "minAvailable": 1},
    "image": {"repository": "hive-mesh-gateway", "pullPolicy": "IfNotPresent", "tag": "local"},
    "service": {"type": "LoadBalancer", "port": 4080},
    "gateway": {
        "upstreamBase": "http://127.0.0.1:3000/", "jsonrpcPath": "/api/a2a/jsonrpc/public", "upstreamAuthSecret": SECRET,
        "blockUserAgents": "sqlmap, Nikto,", "tlsCertPath": "", "tlsKeyPath": "", "mtlsCaPath": "", "securityHeaders": "1",
        "metricsAuthSecret": SECRET, "maxUrlBytes": "8192", "requestTimeoutMs": "60000", "rateLimitPerMin": 120,
        "rateLimitRedisUrl": "redis://127.0.0.1:6379", "maxBodyBytes": 524288, "upstreamForwardFor": "chain",
        "trustedProxies": ["10.0.0.0/8"], "upstreamTimeoutMs": 60000,
    },
    "ingress": {
        "enabled": True, "className": "nginx", "annotations": {"a": "b"},
        "hosts": [{"host": "edge.example", "paths": [{"path": "/", "pathType": "Prefix"}]}],
        "tls": [{"hosts": ["edge.example"], "secretName": "edge"}],
    },
    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
    "nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": [{"operator": "Exists"}], "affinity": {},
    "serviceMonitor": {"enabled": True, "interval": "30s", "scrapeTimeout": "10s", "path": "/v1/metrics", "labels": {"r": "p"}},
    "prometheusRule": {"enabled": True, "for": "10m", "labels": {"r": "p"}},
}
HIVE = {"upstreamBase": "http://127.0.0.1:3000"}
CASES = {
    "nothing said": {"gateway": HIVE},
    "the older chart's values": OLDER,
    "no limits": {"gateway": HIVE | {"requestTimeoutMs": "0", "upstreamTimeoutMs": 0}},
    "mutual TLS": {"gateway": HIVE, "tls": {"secretName": "edge"}},
    "TLS alone": {"gateway": HIVE, "tls": {"secretName": "edge", "mutual": False}},
    "a cluster without IPv4": {"gateway": HIVE, "ipFamily": "IPv6", "networkPolicy": {"enabled": True}},
    "a cluster without IPv4, TLS alone": {
        "gateway": HIVE, "ipFamily": "IPv6", "tls": {"secretName": "edge", "mutual": False},
        "networkPolicy": {"enabled": True, "adminFrom": []},
    },
    "files of one's own": {
        "gateway": HIVE | {"tlsCertPath": "/x/tls.crt", "tlsKeyPath": "/x/tls.key", "mtlsCaPath": "/x/ca.crt"},
        "extraVolumes": [{"name": "x", "emptyDir": {}}], "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}],
        "existingSecret": "mine", "podAnnotations": {"a": "b"}, "imagePullSecrets": [{"name": "pull"}],
    },
}
REFUSED = {
    "chain without proxies": {"gateway": {"upstreamForwardFor": "chain"}},
    "a short secret": {"gateway": {"upstreamAuthSecret": "short"}},
    "a certificate without its key": {"gateway": {"tlsCertPath": "/x/tls.crt"}},
    "an unknown family": {"gateway": HIVE, "ipFamily": "ipv6"},
    "an unknown way to forward": {"gateway": {"upstreamForwardFor": "maybe"}},
}


def furnish(directory):
    """Certificates and secrets, as the chart's volumes would bring them."""
    run = lambda *arguments: subprocess.run([GATEWAY, *arguments], check=True, capture_output=True)
    run("pki", "init", f"{directory}/pki")
    run("pki", "server", f"{directory}/pki", "edge", "--dns", "edge.example")
    (directory / "secrets").mkdir()
    for name in ["gateway", "admin"]:
        (directory / "secrets" / name).write_text(SECRET)
        (directory / "secrets" / name).chmod(0o600)


def check(config, directory):
    """`hive-gateway check`, with the container's paths as they are here."""
    for old, new in {"tls.crt": "edge.pem", "tls.key": "edge.key", "ca.crt": "bundle.pem"}.items():
        for at in ["/etc/hive-gateway/tls/", "/x/"]:
            config = config.replace(f"{at}{old}", str(directory / "pki" / new))
    config = config.replace("/etc/hive-gateway/secrets", str(directory / "secrets"))
    (directory / "gateway.yaml").write_text(config)
    listener = yaml.safe_load(config)["listeners"][0]
    pod = "fd00::7" if "[" in listener["address"] else "10.1.2.3"
    environment = os.environ | {"POD_IP": pod, "REDIS_URL": "redis://127.0.0.1:6379"}
    command = [GATEWAY, "check", "--config", directory / "gateway.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{config}\n{done.stderr}"
    return done.stderr


def fits(config, deployment):
    """What connections may take is there, by the capacity formula's figures (values.yaml, maxConnections)."""
    connections = yaml.safe_load(config)["listeners"][0]["limits"]["connections"]
    bodies = int(yaml.safe_load(config)["server"]["body_memory"].removesuffix("MiB"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    memory = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    needed = 64 + bodies + connections * 128 / 1024
    assert needed <= memory, f"{connections} connections need {needed} MiB of {memory}"


def policy(manifest):
    """Only whom the values name may reach the admin port."""
    for rule in manifest["spec"]["ingress"]:
        assert ("from" in rule) == (rule["ports"][0]["port"] == "admin"), manifest


def main():
    report = helm_python.lint(CHART, CASES["nothing said"], strict=True)
    bad = [m for m in report["messages"] if m["severity"] > 1]
    assert not bad and not report["errors"], report
    chart = helm_python.Chart.load(CHART)
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        furnish(directory)
        for name, values in CASES.items():
            rendered = chart.render(values, name="edge", namespace="mesh")
            kinds = []
            config, deployment = None, None
            for file, text in rendered.items():
                if file.endswith("NOTES.txt"):
                    continue
                for manifest in filter(None, yaml.safe_load_all(text)):
                    kinds.append(manifest["kind"])
                    if manifest["kind"] == "ConfigMap":
                        config = manifest["data"]["gateway.yaml"]
                        said = check(config, directory)
                        if "ipFamily" in values:
                            assert "0.0.0.0" not in config and "127.0.0.1:9901" not in config, config
                    if manifest["kind"] == "Deployment":
                        deployment = manifest
                    if manifest["kind"] == "NetworkPolicy":
                        policy(manifest)
                    if manifest["kind"] not in CUSTOM:
                        for version in KUBERNETES:
                            kubernetes_validate.validate(manifest, version, strict=True)
            fits(config, deployment)
            print(f"{name}: {', '.join(sorted(kinds))}")
            print("".join(f"    {line.split('gateway.yaml:')[-1]}\n" for line in said.splitlines()), end="")
        for name, values in REFUSED.items():
            try:
                chart.render(values, name="edge", namespace="mesh")
            except helm_python.HelmError as error:
                print(f"{name}: refused, {str(error).splitlines()[0][-90:]}")
            else:
                raise AssertionError(f"{name} is not refused")


main()
