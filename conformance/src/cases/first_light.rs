//! One real application through all of the cluster: applied, reached, updated, broken and removed with stock kubectl.

use crate::harness::Sandbox;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};

const WEB: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: green, file.txt: "from a config map\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: token}
stringData: {password: hunter2}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: app
        image: coxswain.test/app:1
        args: [serve, --drain-ms=1500]
        ports: [{name: http, containerPort: 8080}]
        env:
        - {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
        - {name: PASSWORD, valueFrom: {secretKeyRef: {name: token, key: password}}}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: GREETING, value: "hello from $(COLOR)"}
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 5}
        resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
        volumeMounts:
        - {name: settings, mountPath: /settings}
        - {name: token, mountPath: /token, readOnly: true}
      volumes:
      - {name: settings, configMap: {name: settings}}
      - {name: token, secret: {secretName: token}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
"#;

const SHELL: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: sh
    image: registry.k8s.io/e2e-test-images/busybox:1.37.0-1
    command: [sh, -c, "trap 'exit 0' TERM; echo started; i=0; while true; do i=$((i+1)); echo tick $i; sleep 1; done"]
"#;

async fn web(s: &Sandbox<'_>) -> Result<()> {
    s.apply(WEB).await?;
    s.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).await?;
    Ok(())
}

async fn shell(s: &Sandbox<'_>) -> Result<()> {
    s.apply(SHELL).await?;
    s.kubectl(&["wait", "--for=condition=Ready", "pod/shell", "--timeout=60s"]).await?;
    Ok(())
}

/// One HTTP GET from where the suite runs. The body of a 200.
fn http_get(address: &str, path: &str) -> Result<String> {
    let timeout = Duration::from_secs(3);
    let target = address.to_socket_addrs()?.next().context("no address")?;
    let mut stream =
        TcpStream::connect_timeout(&target, timeout).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("reading from {address}"))?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{address}{path} answered {answer}");
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned()).unwrap_or_default())
}

async fn service_address(s: &Sandbox<'_>) -> Result<(String, String)> {
    let service = s.get(&["service", "web"]).await?;
    let ip = service["spec"]["clusterIP"].as_str().context("the Service has no clusterIP")?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("the Service has no nodePort")?;
    let nodes = s.get(&["nodes"]).await?;
    let addresses = nodes["items"][0]["status"]["addresses"].as_array().context("the node has no addresses")?;
    let node = addresses.iter().find(|a| a["type"] == "InternalIP").context("the node has no InternalIP")?;
    let node = node["address"].as_str().context("the address is no text")?;
    Ok((format!("{ip}:80"), format!("{node}:{port}")))
}

pub async fn a_deployment_becomes_running_pods_behind_a_service(s: &Sandbox<'_>) -> Result<()> {
    web(s).await?;
    shell(s).await?;
    let pods: BTreeSet<String> = s.ready_pods("app=web").await?.into_iter().collect();
    ensure!(pods.len() == 3, "3 pods should be ready, {pods:?} are");

    // By name from a pod: the short name, the full one, and the addresses it resolves to.
    let full = format!("http://web.{}.svc.cluster.local/hostname", s.namespace);
    let one = s.kubectl(&["exec", "shell", "--", "app", "get", "http://web/hostname"]).await?;
    ensure!(pods.contains(one.trim()), "{one} is none of {pods:?}");
    let one = s.kubectl(&["exec", "shell", "--", "app", "get", &full]).await?;
    ensure!(pods.contains(one.trim()), "{one} is none of {pods:?}");

    // From the node by ClusterIP and NodePort, spread over every pod.
    let (cluster_ip, node_port) = service_address(s).await?;
    for address in [&cluster_ip, &node_port] {
        let mut seen = BTreeSet::new();
        for _ in 0..60 {
            seen.insert(http_get(address, "/hostname")?);
        }
        ensure!(seen == pods, "{address} answered from {seen:?}, not from each of {pods:?}");
    }

    // A pod reaches itself through its Service.
    let pod = pods.iter().next().context("no pod")?;
    let own = s.kubectl(&["exec", pod, "--", "/app", "get", "http://web/hostname", "--count=20"]).await?;
    ensure!(own.lines().any(|l| l == pod), "{pod} never reached itself through the Service: {own}");
    Ok(())
}

pub async fn configuration_reaches_the_containers(s: &Sandbox<'_>) -> Result<()> {
    web(s).await?;
    let (address, _) = service_address(s).await?;
    for (name, want) in [("COLOR", "green"), ("PASSWORD", "hunter2"), ("GREETING", "hello from green")] {
        let got = http_get(&address, &format!("/env?name={name}"))?;
        ensure!(got == want, "{name} is {got:?}, not {want:?}");
    }
    ensure!(http_get(&address, "/env?name=POD_IP")?.parse::<std::net::Ipv4Addr>().is_ok(), "POD_IP is no address");
    ensure!(http_get(&address, "/env?name=KUBERNETES_SERVICE_HOST").is_ok(), "service links are missing");
    ensure!(
        http_get(&address, "/file?path=/settings/file.txt")? == "from a config map",
        "the config map's file differs"
    );
    ensure!(http_get(&address, "/file?path=/token/password")? == "hunter2", "the secret's file differs");
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
    ensure!(
        http_get(&address, &format!("/file?path={token}"))? == s.namespace,
        "the service account's namespace differs"
    );
    ensure!(
        http_get(&address, "/file?path=/etc/resolv.conf")?.contains("svc.cluster.local"),
        "resolv.conf has no search path"
    );

    // A changed ConfigMap arrives in the running containers.
    s.kubectl(&["patch", "configmap", "settings", "-p", r#"{"data":{"file.txt":"changed\n"}}"#]).await?;
    s.eventually("the changed file in the container", 120, || async {
        Ok((http_get(&address, "/file?path=/settings/file.txt")? == "changed").then_some(()))
    })
    .await
}

pub async fn kubectl_shows_what_upstream_shows(s: &Sandbox<'_>) -> Result<()> {
    web(s).await?;
    let check = |what: &str, text: &str, wanted: &[&str]| -> Result<()> {
        for want in wanted {
            ensure!(text.contains(want), "{what} lacks {want:?}:\n{text}");
        }
        Ok(())
    };
    let all = s.kubectl(&["get", "all"]).await?;
    check(
        "get all",
        &all,
        &["pod/web-", "service/web", "deployment.apps/web", "replicaset.apps/web-", "3/3", "Running"],
    )?;
    let pods = s.kubectl(&["get", "pods", "-o", "wide"]).await?;
    check(
        "get pods -o wide",
        &pods,
        &["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"],
    )?;
    let nodes = s.cluster_kubectl(&["get", "nodes", "-o", "wide"]).await?;
    check("get nodes -o wide", &nodes, &["Ready", "INTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"])?;
    let described = s.kubectl(&["describe", "deployment", "web"]).await?;
    check(
        "describe deployment",
        &described,
        &["RollingUpdateStrategy:", "25% max unavailable", "ScalingReplicaSet", "Pod Template:"],
    )?;
    // Of one pod: kubectl leaves events out where it describes several.
    let pod = s.ready_pods("app=web").await?.into_iter().next().context("no pod is ready")?;
    let described = s.kubectl(&["describe", "pod", &pod]).await?;
    check(
        "describe pod",
        &described,
        &["Scheduled", "Successfully assigned", "Pulled", "Created", "Started", "QoS Class:", "Burstable"],
    )?;
    let described = s.kubectl(&["describe", "service", "web"]).await?;
    check("describe service", &described, &["Endpoints:", ":8080", "NodePort:"])?;
    check(
        "get -o yaml",
        &s.kubectl(&["get", "deployment", "web", "-o", "yaml"]).await?,
        &["kind: Deployment", "replicas: 3"],
    )?;
    check("get -o name", &s.kubectl(&["get", "deployment", "-o", "name"]).await?, &["deployment.apps/web"])?;
    let path = s.kubectl(&["get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"]).await?;
    ensure!(path == "3", "jsonpath gave {path:?}");
    let columns = s.kubectl(&["get", "pods", "-o", "custom-columns=N:.metadata.name,P:.status.phase"]).await?;
    check("custom-columns", &columns, &["N ", "P", "Running"])?;
    let explained = s.cluster_kubectl(&["explain", "deployment.spec.replicas"]).await?;
    check("explain", &explained, &["replicas", "integer"])?;
    let explained = s.cluster_kubectl(&["explain", "pods", "--recursive"]).await?;
    check("explain --recursive", &explained, &["containers", "readinessProbe"])?;
    let dry = s
        .kubectl_with_input(
            &["create", "--dry-run=server", "-f", "-"],
            r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dry"}}"#,
        )
        .await?;
    check("create --dry-run=server", &dry, &["configmap/dry created (server dry run)"])?;
    let refused = s
        .try_kubectl(
            &["-n", &s.namespace, "create", "-f", "-"],
            Some(r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "dta": {}}"#),
        )
        .await?;
    ensure!(refused.code != 0, "an unknown field was accepted");
    check("create with an unknown field", &refused.stderr, &["unknown field \"dta\""])?;
    let refused = s.try_kubectl(&["-n", &s.namespace, "get", "pod", "nosuch"], None).await?;
    check("get of what is not there", &refused.stderr, &["Error from server (NotFound): pods \"nosuch\" not found"])?;
    let versions = s.cluster_kubectl(&["api-resources"]).await?;
    check("api-resources", &versions, &["deployments", "deploy", "apps/v1"])?;
    check("auth can-i", &s.kubectl(&["auth", "can-i", "delete", "pods"]).await?, &["yes"])?;
    check("apply again", &s.apply(WEB).await?, &["deployment.apps/web unchanged", "service/web unchanged"])
}

pub async fn logs_are_followed_and_limited(s: &Sandbox<'_>) -> Result<()> {
    shell(s).await?;
    let mut child = s.kubectl_background(&["logs", "-f", "shell"])?;
    let stdout = child.stdout.take().context("no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let line =
            tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await.context("logs -f fell silent")??;
        seen.push(line.context("logs -f ended early")?);
    }
    ensure!(seen[0] == "started" && seen[1] == "tick 1" && seen[2] == "tick 2", "logs -f gave {seen:?}");
    let tail = s.kubectl(&["logs", "shell", "--tail=1"]).await?;
    ensure!(tail.lines().count() == 1 && tail.starts_with("tick "), "--tail=1 gave {tail:?}");
    let limited = s.kubectl(&["logs", "shell", "--limit-bytes=7"]).await?;
    ensure!(limited == "started", "--limit-bytes=7 gave {limited:?}");
    let stamped = s.kubectl(&["logs", "shell", "--timestamps", "--tail=1"]).await?;
    ensure!(stamped.starts_with("20") && stamped.contains("Z tick"), "--timestamps gave {stamped:?}");
    let since = s.kubectl(&["logs", "shell", "--since=1s"]).await?;
    ensure!(since.lines().count() <= 3, "--since=1s gave {since:?}");
    s.kubectl(&[
        "exec",
        "shell",
        "--",
        "sh",
        "-c",
        "kill -9 $(pidof -o $$ sh | tr ' ' '\\n' | tail -1) || kill -TERM 1",
    ])
    .await
    .ok();
    s.eventually("the log of the container before", 60, || async {
        let previous = s.kubectl(&["logs", "shell", "--previous"]).await?;
        Ok(previous.starts_with("started").then_some(()))
    })
    .await
}

pub async fn exec_carries_input_output_and_exit_codes(s: &Sandbox<'_>) -> Result<()> {
    shell(s).await?;
    let echoed = s.kubectl_with_input(&["exec", "-i", "shell", "--", "cat"], "through and back\n").await?;
    ensure!(echoed == "through and back\n", "cat gave {echoed:?}");
    let long: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
    let echoed = s.kubectl_with_input(&["exec", "-i", "shell", "--", "cat"], &long).await?;
    ensure!(echoed == long, "{} of {} bytes came back", echoed.len(), long.len());
    let ns = s.namespace.as_str();
    let failed =
        s.try_kubectl(&["-n", ns, "exec", "shell", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], None).await?;
    ensure!(failed.code == 7, "the exit code was {}, not 7: {failed:?}", failed.code);
    ensure!(failed.stdout == "out\n" && failed.stderr.starts_with("err\n"), "the streams were mixed: {failed:?}");
    // With a terminal, whose size the program sees.
    let line = format!("stty rows 33 cols 101; {} exec -it shell -- sh -c 'sleep 1; stty size; tty'", s.kubectl_line());
    let output = tokio::process::Command::new("script").args(["-qec", &line, "/dev/null"]).output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("33 101"), "the terminal's size did not arrive: {text:?}");
    ensure!(text.contains("/dev/pts/"), "there was no terminal: {text:?}");
    Ok(())
}

pub async fn files_are_copied_both_ways(s: &Sandbox<'_>) -> Result<()> {
    shell(s).await?;
    let dir = tempfile::tempdir()?;
    let (there, back) = (dir.path().join("there.bin"), dir.path().join("back.bin"));
    let content: Vec<u8> = (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&there, &content)?;
    let there = there.to_str().context("path")?;
    s.kubectl(&["cp", there, "shell:/tmp/file.bin"]).await?;
    s.kubectl(&["cp", "shell:/tmp/file.bin", back.to_str().context("path")?]).await?;
    ensure!(std::fs::read(&back)? == content, "the file came back changed");
    Ok(())
}

pub async fn ports_are_forwarded(s: &Sandbox<'_>) -> Result<()> {
    web(s).await?;
    for target in ["deployment/web", "service/web"] {
        let port = if target.starts_with("service") { ":80" } else { ":8080" };
        let mut child = s.kubectl_background(&["port-forward", target, port])?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line())
            .await
            .context("port-forward is silent")??;
        let line = line.context("port-forward ended")?;
        let local =
            line.split(" -> ").next().and_then(|l| l.rsplit(' ').next()).context("no local address")?.to_owned();
        for _ in 0..5 {
            let host = tokio::task::spawn_blocking({
                let local = local.clone();
                move || http_get(&local, "/hostname")
            })
            .await??;
            ensure!(host.starts_with("web-"), "{target} answered {host:?}");
        }
    }
    Ok(())
}

pub async fn a_rolling_update_fails_no_request(s: &Sandbox<'_>) -> Result<()> {
    web(s).await?;
    let (address, _) = service_address(s).await?;
    s.kubectl(&["scale", "deployment/web", "--replicas=4"]).await?;
    s.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).await?;
    ensure!(s.ready_pods("app=web").await?.len() == 4, "scaling to 4 did not give 4 pods");

    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load = std::thread::spawn({
        let (stop, address) = (stop.clone(), address.clone());
        move || -> (u64, Vec<String>, BTreeSet<String>) {
            let (mut count, mut failures, mut versions) = (0, Vec::new(), BTreeSet::new());
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                match http_get(&address, "/version") {
                    Ok(version) => _ = versions.insert(version),
                    Err(e) => failures.push(format!("{e:#}")),
                }
                count += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            (count, failures, versions)
        }
    });
    let rolled = async {
        s.kubectl(&["set", "image", "deployment/web", "app=coxswain.test/app:2"]).await?;
        s.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]).await?;
        // The last old pods still drain; requests must not reach them.
        tokio::time::sleep(Duration::from_secs(2)).await;
        anyhow::Ok(())
    }
    .await;
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let (count, failures, versions) = load.join().map_err(|_| anyhow::anyhow!("the load generator panicked"))?;
    rolled?;
    ensure!(failures.is_empty(), "{} of {count} requests failed, first: {}", failures.len(), failures[0]);
    ensure!(versions.len() == 2, "only versions {versions:?} were seen in {count} requests");
    ensure!(http_get(&address, "/version")? == "2", "the new version does not answer");
    let history = s.kubectl(&["rollout", "history", "deployment/web"]).await?;
    ensure!(history.contains('1') && history.contains('2'), "the history lacks a revision: {history}");
    s.kubectl(&["rollout", "undo", "deployment/web"]).await?;
    s.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]).await?;
    s.eventually("the old version again", 20, || async { Ok((http_get(&address, "/version")? == "1").then_some(())) })
        .await
}

pub async fn a_deleted_pod_is_replaced(s: &Sandbox<'_>) -> Result<()> {
    web(s).await?;
    let before = s.ready_pods("app=web").await?;
    s.kubectl(&["delete", "pod", &before[0]]).await?;
    s.eventually("three ready pods again", 60, || async {
        let now = s.ready_pods("app=web").await?;
        Ok((now.len() == 3 && !now.contains(&before[0])).then_some(()))
    })
    .await
}

pub async fn a_killed_container_is_restarted_with_back_off(s: &Sandbox<'_>) -> Result<()> {
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  containers:
  - {name: app, image: "coxswain.test/app:1", args: [exit, "3", "1000"]}
"#;
    s.apply(pod).await?;
    s.eventually("a first restart", 60, || async {
        let pod = s.get(&["pod", "once"]).await?;
        let status = &pod["status"]["containerStatuses"][0];
        let ended = &status["lastState"]["terminated"];
        Ok((status["restartCount"].as_u64() >= Some(1) && ended["exitCode"] == 3 && ended["reason"] == "Error")
            .then_some(()))
    })
    .await?;
    s.eventually("CrashLoopBackOff", 60, || async {
        let shown = s.kubectl(&["get", "pod", "once"]).await?;
        Ok(shown.contains("CrashLoopBackOff").then_some(()))
    })
    .await?;
    let described = s.kubectl(&["describe", "pod", "once"]).await?;
    ensure!(
        described.contains("Back-off restarting failed container app in pod once_"),
        "no BackOff event:\n{described}"
    );
    Ok(())
}

pub async fn broken_pods_say_why(s: &Sandbox<'_>) -> Result<()> {
    let pods = r#"
apiVersion: v1
kind: Pod
metadata: {name: no-image}
spec: {containers: [{name: c, image: "coxswain.test/nosuch:1", imagePullPolicy: IfNotPresent}]}
---
apiVersion: v1
kind: Pod
metadata: {name: never}
spec: {containers: [{name: c, image: "coxswain.test/nosuch:1", imagePullPolicy: Never}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-config}
spec: {containers: [{name: c, image: "coxswain.test/app:1", envFrom: [{configMapRef: {name: nosuch}}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: too-big}
spec: {containers: [{name: c, image: "coxswain.test/app:1", resources: {requests: {cpu: "1000"}}}]}
"#;
    s.apply(pods).await?;
    let waits = [
        ("no-image", &["ImagePullBackOff", "ErrImagePull"][..]),
        ("never", &["ErrImageNeverPull"][..]),
        ("no-config", &["CreateContainerConfigError"][..]),
        ("too-big", &["Pending"][..]),
    ];
    for (pod, reasons) in waits {
        s.eventually(&format!("{pod} to show {reasons:?}"), 60, || async {
            let shown = s.kubectl(&["get", "pod", pod]).await?;
            Ok(reasons.iter().any(|r| shown.contains(r)).then_some(()))
        })
        .await?;
    }
    let described = s.kubectl(&["describe", "pod", "too-big"]).await?;
    ensure!(described.contains("Insufficient cpu"), "the scheduler does not say why:\n{described}");
    let described = s.kubectl(&["describe", "pod", "no-config"]).await?;
    ensure!(described.contains(r#"configmap "nosuch" not found"#), "the kubelet does not say why:\n{described}");
    Ok(())
}

pub async fn a_cordoned_node_takes_no_pods(s: &Sandbox<'_>) -> Result<()> {
    web(s).await?;
    let nodes = s.get(&["nodes"]).await?;
    let items = nodes["items"].as_array().context("no nodes")?;
    let names: Vec<&str> = items.iter().filter_map(|n| n["metadata"]["name"].as_str()).collect();
    let outcome = cordon(s, &names).await;
    for name in &names {
        s.cluster_kubectl(&["uncordon", name]).await?;
    }
    outcome?;
    s.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).await?;
    Ok(())
}

async fn cordon(s: &Sandbox<'_>, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        s.cluster_kubectl(&["cordon", node]).await?;
        let shown = s.cluster_kubectl(&["get", "node", node]).await?;
        ensure!(shown.contains("Ready,SchedulingDisabled"), "the node does not show as cordoned: {shown}");
    }
    let selector = "--pod-selector=app=web".to_owned();
    for node in nodes {
        s.cluster_kubectl(&[
            "drain",
            node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--force",
            &selector,
            "--timeout=60s",
        ])
        .await?;
    }
    s.eventually("pods that wait for a node", 30, || async {
        let pods = s.get(&["pods", "-l", "app=web"]).await?;
        let items = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok((items.len() == 3 && items.iter().all(|p| p["status"]["phase"] == "Pending")).then_some(()))
    })
    .await
}

pub async fn a_deleted_namespace_takes_everything_with_it(s: &Sandbox<'_>) -> Result<()> {
    let inner = format!("{}-in", s.namespace);
    s.cluster_kubectl(&["create", "namespace", &inner]).await?;
    let output = s.try_kubectl(&["-n", &inner, "apply", "-f", "-"], Some(WEB)).await?;
    ensure!(output.code == 0, "{}", output.stderr);
    s.cluster_kubectl(&["-n", &inner, "rollout", "status", "deployment/web", "--timeout=60s"]).await?;
    let start = Instant::now();
    s.cluster_kubectl(&["delete", "namespace", &inner, "--timeout=80s"]).await?;
    let gone = s.try_kubectl(&["get", "namespace", &inner], None).await?;
    if gone.code == 0 {
        bail!("the namespace is still there after {:?}: {}", start.elapsed(), gone.stdout);
    }
    for kind in ["pods", "deployments", "services", "configmaps", "secrets", "endpointslices"] {
        let left = s.cluster_kubectl(&["-n", &inner, "get", kind, "-o", "name"]).await?;
        ensure!(left.trim().is_empty(), "left behind: {left}");
    }
    Ok(())
}
