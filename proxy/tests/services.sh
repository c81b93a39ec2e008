#!/usr/bin/env bash
# The proxy and the DNS server against an API server and three pods that are network namespaces.
# Run it as root in a namespace of its own, with the binaries built:
#
#   dev/in-namespace.sh proxy/tests/services.sh COXSWAIN PROXY-EXAMPLE
set -uo pipefail
coxswain=$(realpath "$1"); proxy=$(realpath "$2")
[ "${COXSWAIN_NAMESPACE:-}" = 1 ] || { echo "run it by dev/in-namespace.sh" >&2; exit 1; }
dir=$(mktemp -d /tmp/coxswain-services.XXXXXX)
cd "$dir"
cleanup() { for p in a b c; do umount "/run/netns/$p" 2>/dev/null; done; rm -rf "$dir"; }
trap cleanup EXIT
failures=0
check() { # NAME EXPECTED COMMAND…: what the command prints matches
    local name=$1 want=$2; shift 2
    local got; got=$("$@" 2>&1)
    if [[ $got =~ $want ]]; then echo "ok   $name"; else echo "FAIL $name: want $want, got: $got"; failures=$((failures + 1)); fi
}
# Waits until a command prints what it should, for changes that take a moment.
within() { local want=$1; shift; for _ in $(seq 50); do [[ $("$@" 2>&1) =~ $want ]] && return; sleep 0.1; done; }

echo 1 >/proc/sys/net/ipv4/ip_forward
ip link add cni0 address 0a:58:0a:f4:01:01 type bridge
ip address add 10.244.1.1/24 dev cni0
ip address add fd00:244::1/64 dev cni0 nodad
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
ip link set cni0 up
modprobe br_netfilter 2>/dev/null; echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null
mkdir -p /run/netns
n=1
for p in a b c; do
    n=$((n + 1))
    ip netns add "$p"
    ip link add "veth$p" type veth peer name eth0 netns "$p"
    ip link set "veth$p" master cni0 up
    ip link set dev "veth$p" type bridge_slave hairpin on
    ip -n "$p" address add "10.244.1.$n/24" dev eth0
    ip -n "$p" address add "fd00:244::$n/64" dev eth0 nodad
    ip -n "$p" link set eth0 up; ip -n "$p" link set lo up
    ip -n "$p" route add default via 10.244.1.1
    ip -n "$p" route add default via fd00:244::1
    cat >server.py <<'P'
import http.server, socket, sys, threading
name = sys.argv[1]
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{name} {self.client_address[0].removeprefix('::ffff:')}\n".encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", 8080))
    while True:
        data, peer = s.recvfrom(2048); s.sendto(f"{name} {peer[0]}".encode(), peer)
threading.Thread(target=udp, daemon=True).start()
class S(http.server.ThreadingHTTPServer): address_family = socket.AF_INET6
S(("::", 8080), H).serve_forever()
P
    ip netns exec "$p" python3 server.py "$p" &
done

printf 'tok,admin,admin,system:masters\n' >tokens.csv
"$coxswain" kube-apiserver --data-dir "$dir/data" --cert-dir "$dir/certs" --bind-address 127.0.0.1 --secure-port 6443 \
    --authorization-mode Node,RBAC --service-cluster-ip-range 10.96.0.0/16 --token-auth-file "$dir/tokens.csv" \
    --service-account-issuer https://kubernetes.default.svc.cluster.local >server.log 2>&1 &
for _ in $(seq 100); do curl -sk https://127.0.0.1:6443/readyz | grep -q ^ok && break; sleep 0.1; done
cat >kubeconfig <<K
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: tok}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
K
export KUBECONFIG=$dir/kubeconfig
k() { kubectl "$@" >/dev/null || echo "kubectl $* failed"; }
slice() { # SERVICE PROTOCOL NAME:IP:NODE:CONDITIONS…
    python3 - "$@" <<'P' | kubectl apply --validate=false -f - >/dev/null
import json, sys
service, protocol, *eps = sys.argv[1:]
ends = []
for e in eps:
    host, rest = e.split(":", 1); ip, node, ready = rest.rsplit(":", 2)
    c = {"ready": ready == "ready", "serving": ready != "broken", "terminating": ready == "leaving"}
    ends.append({"addresses": [ip], "nodeName": node, "conditions": c, **({"hostname": host} if host else {})})
print(json.dumps({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6" if ":" in ends[0]["addresses"][0] else "IPv4",
  "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
  "ports": [{"name": "p", "protocol": protocol, "port": 8080}], "endpoints": ends}))
P
}
service() { # NAME PROTOCOL SPEC-AS-JSON
    python3 - "$@" <<'P' | kubectl apply --validate=false -f - >/dev/null
import json, sys
name, protocol, spec = sys.argv[1:]
spec = json.loads(spec)
port = {"name": "p", "port": 80, "protocol": protocol, "targetPort": 8080}
if "nodePort" in spec: port["nodePort"] = spec.pop("nodePort")
print(json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [port], **spec}}))
P
}
get() { curl -s -m 3 "$@"; }
in_a() { ip netns exec a "$@"; }
udp() { python3 -c '
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2); s.sendto(b"x", (sys.argv[1], 80))
try: print(s.recv(100).decode())
except Exception as e: print(e)' "$@"; }

service web TCP '{"clusterIP": "10.96.1.1", "type": "NodePort", "nodePort": 30080, "externalIPs": ["203.0.113.5"]}'
slice web TCP ":10.244.1.2:n1:ready" ":10.244.1.3:n1:ready"
service own TCP '{"clusterIP": "10.96.1.2"}'; slice own TCP ":10.244.1.2:n1:ready"
service none TCP '{"clusterIP": "10.96.1.3"}'
service sticky TCP '{"clusterIP": "10.96.1.4", "sessionAffinity": "ClientIP"}'
slice sticky TCP ":10.244.1.2:n1:ready" ":10.244.1.3:n1:ready" ":10.244.1.4:n1:ready"
service local TCP '{"clusterIP": "10.96.1.5", "type": "NodePort", "nodePort": 30085, "externalTrafficPolicy": "Local"}'
slice local TCP ":10.244.1.4:n2:ready"
service inner TCP '{"clusterIP": "10.96.1.6", "internalTrafficPolicy": "Local"}'; slice inner TCP ":10.244.1.4:n2:ready"
service leaving TCP '{"clusterIP": "10.96.1.7"}'; slice leaving TCP ":10.244.1.4:n1:leaving"
service udp UDP '{"clusterIP": "10.96.1.8"}'; slice udp UDP ":10.244.1.2:n1:ready"
service head TCP '{"clusterIP": "None"}'; slice head TCP "web-0:10.244.1.2:n1:ready" ":10.244.1.3:n1:ready" ":10.244.1.4:n1:broken"
service lb TCP '{"clusterIP": "10.96.1.10", "type": "LoadBalancer", "nodePort": 30090, "externalTrafficPolicy": "Local", "healthCheckNodePort": 30091, "loadBalancerSourceRanges": ["10.244.1.3/32"]}'
slice lb TCP ":10.244.1.4:n1:ready" ":10.244.1.2:n2:ready"
kubectl patch service lb --subresource=status --type merge -p '{"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}' >/dev/null
service alias TCP '{"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}'
nft add table ip kube-proxy; nft add chain ip kube-proxy stale
RUST_LOG=info "$proxy" kubeconfig n1 10.244.0.0/16 192.168.250.2:10053 >proxy.log 2>&1 &
within '[ab] ' get http://10.96.1.1

check "a ClusterIP from the node, masqueraded" '^[ab] 10.244.1.1' get http://10.96.1.1
check "a ClusterIP from a pod, by its own address" '^a 10.244.1.3' ip netns exec b curl -s -m 3 http://10.96.1.2
check "a pod reaches itself through its service" '^a 10.244.1.1' in_a curl -s -m 3 http://10.96.1.2
check "all endpoints get traffic" 'a.*b|b.*a' bash -c 'for i in $(seq 20); do curl -s -m 3 http://10.96.1.1; done | cut -c1 | sort -u | tr -d "\n"'
check "a node port" '^[ab] ' get http://192.168.250.2:30080
check "a node port from a pod" '^[ab] ' in_a curl -s -m 3 http://192.168.250.2:30080
check "an external IP" '^[ab] ' get http://203.0.113.5
check "no endpoints: refused" 'refused|onnect' curl -sS -m 2 http://10.96.1.3
check "another port of a ClusterIP: refused" 'refused|onnect' curl -sS -m 2 http://10.96.1.1:81
check "a client stays with its endpoint" '^1$' bash -c 'for i in $(seq 20); do curl -s -m 3 http://10.96.1.4; done | cut -c1 | sort -u | wc -l'
check "the local policy drops without local endpoints" 'timed out|onnect' curl -sS -m 1 --interface 192.168.250.2 http://10.96.1.6
check "pods reach a local service's node port by the cluster" '^c ' in_a curl -s -m 3 http://192.168.250.2:30085
check "what terminates serves when nothing else is there" '^c ' get http://10.96.1.7
check "UDP" '^a ' udp 10.96.1.8
check "what was stale is gone" 'No such|Error' nft list chain ip kube-proxy stale
check "healthz" 'nodeEligible": true' get http://127.0.0.1:10256/healthz
check "a balancer's address within its source ranges" '^[ac] ' ip netns exec b curl -s -m 3 http://203.0.113.9
check "a balancer's address outside of them" 'timed out|onnect' curl -sS -m 1 http://203.0.113.9
check "a balancer's node port needs no source range" '^[ac] ' get http://192.168.250.2:30090
check "what a balancer is told" '"localEndpoints": 1' get http://192.168.250.2:30091
slice udp UDP ":10.244.1.3:n1:ready"; within '^b ' udp 10.96.1.8
check "UDP goes to the new endpoint" '^b ' udp 10.96.1.8
slice none TCP ":10.244.1.4:n1:ready"; within '^c ' get http://10.96.1.3
check "the first endpoint of a service" '^c ' get http://10.96.1.3
slice local TCP ":10.244.1.4:n1:ready"; within '^c 192' get http://192.168.250.2:30085
check "the local policy keeps the client's address for local endpoints" '^c ' get http://192.168.250.2:30085
k delete service web; within 'refused|onnect|^$' get http://10.96.1.1; sleep 0.3
check "a deleted service is gone from the table" '^0$' bash -c 'nft list table ip kube-proxy | grep -c default/web'

dns() { python3 - "$@" <<'P'
import socket, struct, sys
name, kind = sys.argv[1], {"A": 1, "AAAA": 28, "SRV": 33, "PTR": 12, "CNAME": 5, "TXT": 16}[sys.argv[2]]
q = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"".join(bytes([len(l)]) + l.encode() for l in name.strip(".").split(".")) + b"\0" + struct.pack("!2H", kind, 1)
if len(sys.argv) > 3:
    s = socket.create_connection(("192.168.250.2", 10053), 2); s.sendall(struct.pack("!H", len(q)) + q); d = s.recv(4096)[2:]
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(8); s.sendto(q, ("192.168.250.2", 10053)); d = s.recv(4096)
_, flags, qd, an, ns, ar = struct.unpack("!6H", d[:12]); at = 12
def read(at):
    out = []
    while d[at]:
        if d[at] & 0xC0:
            out.append(read(struct.unpack("!H", d[at:at+2])[0] & 0x3FFF)[0]); return ".".join(out), at + 2
        out.append(d[at+1:at+1+d[at]].decode()); at += 1 + d[at]
    return ".".join(out), at + 1
_, at = read(at); at += 4
res = []
for _ in range(an):
    _, at = read(at); t, _, ttl, l = struct.unpack("!HHIH", d[at:at+10]); at += 10
    if t == 1: res.append("A " + socket.inet_ntoa(d[at:at+4]))
    elif t == 33: res.append("SRV %d %s" % (struct.unpack("!H", d[at+4:at+6])[0], read(at+6)[0]))
    elif t in (12, 5): res.append({12: "PTR ", 5: "CNAME "}[t] + read(at)[0])
    else: res.append(str(t))
    at += l
print("rcode=%d ns=%d ar=%d %s" % (flags & 15, ns, ar, " ".join(sorted(res))))
P
}
check "a service" '^rcode=0 .* A 10.96.1.2$' dns own.default.svc.cluster.local A
check "over TCP, in capitals" 'A 10.96.1.2$' dns OWN.Default.svc.cluster.local A tcp
check "no such type" '^rcode=0 ns=1 .* $' dns own.default.svc.cluster.local AAAA
check "no such service" '^rcode=3 ns=1' dns nope.default.svc.cluster.local A
check "no such namespace" '^rcode=3 ns=1' dns own.nope.svc.cluster.local A
check "a namespace" '^rcode=0 ns=1' dns default.svc.cluster.local A
check "a headless service" 'A 10.244.1.2 A 10.244.1.3$' dns head.default.svc.cluster.local A
check "a host of it" 'A 10.244.1.2$' dns web-0.head.default.svc.cluster.local A
check "SRV of a service" 'SRV 80 own.default.svc.cluster.local$' dns _p._tcp.own.default.svc.cluster.local SRV
check "SRV of a headless one" 'ar=2 SRV 8080 10-244-1-3.head.default.svc.cluster.local SRV 8080 web-0.head.default.svc.cluster.local$' dns _p._tcp.head.default.svc.cluster.local SRV
check "no such port" '^rcode=3' dns _q._tcp.own.default.svc.cluster.local SRV
check "an alias" 'CNAME web.default.svc.cluster.local$' dns alias.default.svc.cluster.local CNAME
check "a pod" 'A 10.244.1.9$' dns 10-244-1-9.default.pod.cluster.local A
check "backwards" 'PTR own.default.svc.cluster.local$' dns 2.1.96.10.in-addr.arpa PTR
check "backwards to a host" 'PTR web-0.head.default.svc.cluster.local$' dns 2.1.244.10.in-addr.arpa PTR
check "the version" '^rcode=0 .* 16$' dns dns-version.cluster.local TXT
check "the outside without a way there" '^rcode=2' dns example.com A
[ "$failures" -eq 0 ] || { echo "--- proxy"; tail -20 proxy.log; }
echo "$failures failed"
[ "$failures" -eq 0 ]
