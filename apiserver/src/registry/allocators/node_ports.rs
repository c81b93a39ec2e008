//! Node ports of services (upstream: the port half of `registry/core/service/storage/alloc.go`).

use super::Taking;
use super::range::Refusal;
use crate::registry::core::service::{Spec, node_port, spec_mut};
use crate::registry::metadata;
use coxswain_api::field::{Error, Path};
use coxswain_api::{Status, Value};

impl Taking<'_> {
    /// Takes node ports for the ports of the service that need one.
    pub(in crate::registry) async fn node_ports(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let had: Vec<i64> = old.map(|o| Spec(o).node_ports()).unwrap_or_default();
        if !Spec(service).has_node_ports() {
            if old.is_some_and(|o| Spec(o).has_node_ports()) {
                self.surplus.ports.extend(had.iter().map(|p| *p as u16));
            }
            return Ok(());
        }
        let allocates = Spec(service).needs_node_port();
        let mut ports: Vec<Value> = Spec(service).ports().to_vec();
        // Two ports of one number, of different protocols, share a node port.
        let mut by_port: Vec<(i64, i64)> = Vec::new();
        let port_number = |p: &Value| p.get("port").and_then(Value::as_i64).unwrap_or(0);
        let mut pairs: Vec<(String, i64)> = Vec::new();
        for i in 0..ports.len() {
            let asked = node_port(&ports[i]);
            if old.is_some() && asked != 0 {
                let protocol = ports[i].get("protocol").and_then(Value::as_str).unwrap_or_default().to_owned();
                let pair = (protocol, asked);
                // Upstream finds this before validation does, and takes it for a malfunction.
                if pairs.contains(&pair) {
                    return Err(Status::new(500, "", format!("duplicate nodePort: {{{} {asked}}}", pair.0)));
                }
                pairs.push(pair);
            }
            if asked == 0 && !allocates {
                continue;
            }
            let own = port_number(&ports[i]);
            let shared = by_port.iter().find(|(p, _)| *p == own).map(|(_, n)| *n);
            let wanted = match (asked, shared) {
                (0, Some(shared)) if old.is_none() => {
                    ports[i]["nodePort"] = shared.into();
                    continue;
                }
                (asked, Some(shared)) if asked == shared => continue,
                (0, None) if old.is_none() => {
                    ports.iter().filter(|p| port_number(p) == own).map(node_port).find(|n| *n != 0).unwrap_or(0)
                }
                (asked, _) => asked,
            };
            let taken_here =
                old.is_some() && (self.held.ports.contains(&(wanted as u16)) || self.dry_ports.contains(&wanted));
            let given = if wanted != 0 && (had.contains(&wanted) || taken_here) {
                wanted
            } else if wanted != 0 {
                self.take_port(wanted).await.map_err(|why| match why {
                    Refusal::Why(why) => {
                        let path = Path::new("spec").child("ports").index(i).child("nodePort");
                        let error = Error::invalid(&path, wanted, why);
                        Status::invalid("", "Service", metadata::text(service, "name"), &[error])
                    }
                    Refusal::Status(status) => status,
                })?;
                wanted
            } else {
                self.any_port().await?
            };
            ports[i]["nodePort"] = given.into();
            if shared.is_none() {
                by_port.push((own, given));
            }
        }
        let now: Vec<i64> = ports.iter().map(node_port).collect();
        self.surplus.ports.extend(had.iter().filter(|p| !now.contains(p)).map(|p| *p as u16));
        if !ports.is_empty() {
            spec_mut(service).insert("ports".into(), ports.into());
        }
        Ok(())
    }

    /// The port at which a node says whether it has endpoints of the service.
    pub(in crate::registry) async fn health_check_port(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let needed = old.is_some_and(|o| Spec(o).needs_health_check());
        let had = old.map_or(0, |o| Spec(o).number("healthCheckNodePort"));
        match (needed, Spec(service).needs_health_check()) {
            (false, true) => {
                let asked = Spec(service).number("healthCheckNodePort");
                if asked != 0 {
                    return self.take_port(asked).await.map_err(|why| match why {
                        Refusal::Why(why) => Status::internal(format!(
                            "failed to allocate requested HealthCheck NodePort {asked}: {why}"
                        )),
                        Refusal::Status(status) => status,
                    });
                }
                let port = self.any_port().await?;
                spec_mut(service).insert("healthCheckNodePort".into(), port.into());
            }
            (true, false) => {
                self.surplus.ports.push(had as u16);
                if Spec(service).number("healthCheckNodePort") == had {
                    spec_mut(service).remove("healthCheckNodePort");
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn take_port(&mut self, port: i64) -> Result<(), Refusal> {
        let node_ports = self.pipeline.node_ports.clone();
        if self.dry_run {
            return self.try_port(port).await;
        }
        let port = node_ports.change(|ports| ports.take(port)).await?;
        self.held.ports.push(port);
        Ok(())
    }

    /// What a dry run asks of a port: that nobody has it. Whether it is one of those that services may have is asked only
    /// when it is taken in earnest, as upstream does.
    async fn try_port(&mut self, port: i64) -> Result<(), Refusal> {
        let node_ports = self.pipeline.node_ports.clone();
        let taken = node_ports.look(|ports| Ok(u16::try_from(port).is_ok_and(|port| ports.has(port)))).await?;
        if taken || self.dry_ports.contains(&port) {
            return Err(Refusal::why("provided port is already allocated"));
        }
        self.dry_ports.push(port);
        Ok(())
    }

    /// The port that a dry run shows where any would do: one after those it has, free or not.
    async fn any_dry_port(&mut self) -> i64 {
        const FIRST: i64 = 32768;
        const SEARCHED_BELOW: i64 = 100;
        let last = match self.dry_ports.iter().max() {
            Some(last) => (*last).max(0),
            None => FIRST,
        };
        for port in last + 1..SEARCHED_BELOW {
            if self.try_port(port).await.is_ok() {
                return port;
            }
        }
        self.dry_ports.push(last + 1);
        i64::from((last + 1) as i32)
    }

    async fn any_port(&mut self) -> Result<i64, Status> {
        if self.dry_run {
            return Ok(self.any_dry_port().await);
        }
        let node_ports = self.pipeline.node_ports.clone();
        match node_ports.change(|ports| ports.take_any()).await {
            Ok(port) => {
                self.held.ports.push(port);
                Ok(i64::from(port))
            }
            Err(Refusal::Why(why)) => Err(Status::internal(format!("failed to allocate a nodePort: {why}"))),
            Err(Refusal::Status(status)) => Err(status),
        }
    }
}
