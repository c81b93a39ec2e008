//! What a pod of one operating system may not have of the other's (upstream: `validateOS`, `validateLinux`,
//! `validateWindows`, `validateWindowsHostProcessPod`).

use super::Options;
use super::spec::all_containers;
use coxswain_api::field::{Error, ErrorList, View};

pub(super) fn validate(spec: &View<'_>, errors: &mut ErrorList) {
    let os = spec.child("os");
    if !os.exists() {
        return;
    }
    let name = os.child("name");
    match name.str() {
        "" => errors.push(Error::required(name.path(), "")),
        "linux" => linux(spec, errors),
        "windows" => windows(spec, errors),
        // The path is that of the whole, as upstream has it.
        other => errors.push(Error::not_supported(os.path(), other, &["linux", "windows"])),
    }
}

fn linux(spec: &View<'_>, errors: &mut ErrorList) {
    const WHY: &str = "windows options cannot be set for a linux pod";
    let contexts =
        std::iter::once(spec.child("securityContext")).chain(all_containers(spec).map(|c| c.child("securityContext")));
    for options in contexts.map(|c| c.child("windowsOptions")).filter(View::exists) {
        errors.push(Error::forbidden(options.path(), WHY));
    }
}

fn windows(spec: &View<'_>, errors: &mut ErrorList) {
    const WHY: &str = "cannot be set for a windows pod";
    let context = spec.child("securityContext");
    let mut forbid = |field: View<'_>, set: bool| {
        if set {
            errors.push(Error::forbidden(field.path(), WHY));
        }
    };
    let mut pod = |field: View<'_>| {
        let set = field.exists();
        forbid(field, set);
    };
    pod(context.child("appArmorProfile"));
    pod(context.child("seLinuxOptions"));
    pod(spec.child("hostUsers"));
    for flag in ["hostPID", "hostIPC"] {
        let field = spec.child(flag);
        let set = field.bool();
        forbid(field, set);
    }
    for field in ["seccompProfile", "fsGroup", "fsGroupChangePolicy"] {
        let field = context.child(field);
        let set = field.exists();
        forbid(field, set);
    }
    let sysctls = context.child("sysctls");
    let set = !sysctls.is_empty();
    forbid(sysctls, set);
    let share = spec.child("shareProcessNamespace");
    let set = share.exists();
    forbid(share, set);
    for field in ["runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy"] {
        let field = context.child(field);
        let set = field.exists();
        forbid(field, set);
    }
    for container in all_containers(spec) {
        let context = container.child("securityContext");
        for field in [
            "appArmorProfile",
            "seLinuxOptions",
            "seccompProfile",
            "capabilities",
            "readOnlyRootFilesystem",
            "privileged",
            "allowPrivilegeEscalation",
            "procMount",
            "runAsUser",
            "runAsGroup",
        ] {
            let field = context.child(field);
            let set = field.exists();
            forbid(field, set);
        }
    }
}

fn host_process_of<'a>(owner: &View<'a>) -> View<'a> {
    owner.child("securityContext").child("windowsOptions").child("hostProcess")
}

/// Containers that are processes of a Windows host: all of a pod or none.
pub(super) fn host_process(spec: &View<'_>, errors: &mut ErrorList) {
    let pod = host_process_of(spec).opt_bool();
    let (mut all, mut host) = (0, 0);
    for container in all_containers(spec) {
        all += 1;
        let own = host_process_of(&container);
        if let (Some(pod), Some(value)) = (pod, own.opt_bool())
            && pod != value
        {
            let why = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            errors.push(Error::invalid(own.path(), value, why));
        }
        host += usize::from(own.opt_bool().or(pod) == Some(true));
    }
    if host == 0 {
        return;
    }
    if host != all {
        let why = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.push(Error::invalid(spec.path(), "", why));
    }
    let network = spec.child("hostNetwork");
    if !network.bool() {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.push(Error::invalid(network.path(), false, why));
    }
}

/// A pod with users of its own shares no other namespace of the host.
pub(super) fn host_users(spec: &View<'_>, options: &Options, errors: &mut ErrorList) {
    if spec.child("hostUsers").opt_bool() != Some(false) {
        return;
    }
    const WHY: &str = "when `hostUsers` is false";
    for (field, reported) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.child(field).bool() {
            errors.push(Error::forbidden(&spec.path().child(reported), WHY));
        }
    }
    if options.allow_devices_with_own_users {
        return;
    }
    for devices in all_containers(spec).map(|c| c.child("volumeDevices")).filter(|d| !d.is_empty()) {
        errors.push(Error::forbidden(devices.path(), WHY));
    }
}
