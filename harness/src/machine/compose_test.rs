//! local/docker-compose.yml and the harness make the same machines.

use pretty_assertions::assert_eq;
use serde_json::Value;

use super::*;
use crate::engine::{Access, MountSource};

/// The file with its variables filled in as `wopr images build` would.
fn compose() -> Value {
    let mut text = include_str!("../../../local/docker-compose.yml").to_owned();
    let given = |name: &str| match name {
        "WOPR_MACHINE_IMAGE" => Some("wopr/machine:1"),
        "WOPR_IMAGE_SET" => Some("abc"),
        "WOPR_SOCKET_GID" => Some("7"),
        _ => None,
    };
    while let Some(start) = text.find("${") {
        let end = start + text[start..].find('}').unwrap();
        let (name, rest) = text[start + 2..end].split_once(':').unwrap();
        let value = given(name)
            .unwrap_or_else(|| rest.strip_prefix('-').unwrap())
            .to_owned();
        text.replace_range(start..=end, &value);
    }
    serde_saphyr::from_str(&text).unwrap()
}

fn setting() -> Setting {
    let lan = crate::engine::Lan::BY_HAND;
    Setting {
        topology: BY_HAND.to_owned(),
        root: "/root".into(),
        control: "/root/local/.run".into(),
        image: "wopr/machine:1".to_owned(),
        toxiproxy: String::new(),
        image_set: "abc".to_owned(),
        models: "/root/models/tiny".into(),
        gpus: super::Variant::Full,
        addresses: BTreeMap::from([(VPS, lan.address(0)), (GPU, lan.address(1))]),
        privilege: Privilege::Nested,
        gid: 7,
        chosen_ports: BTreeMap::new(),
        owner: "/run".into(),
        idle: std::time::Duration::ZERO,
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn map(value: &Value) -> BTreeMap<String, String> {
    let entries = value.as_object().unwrap().iter();
    entries.map(|(key, value)| (key.clone(), text(value))).collect()
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(text).collect()
}

/// A mount of the harness in compose's short form.
fn short(mount: &MountSpec, compose: &Value) -> String {
    let source = match &mount.source {
        MountSource::Volume(name) => {
            let volumes = compose["volumes"].as_object().unwrap();
            volumes
                .iter()
                .find(|(_, volume)| volume["name"] == name.as_str())
                .unwrap()
                .0
                .clone()
        }
        MountSource::Directory(path) => {
            let path = path.display().to_string();
            path.replace("/root/local/", "./").replace("/root/", "../")
        }
        MountSource::Anonymous => String::new(),
    };
    let mode = if mount.access == Access::ReadOnly {
        ":ro"
    } else {
        ""
    };
    format!("{source}:{}{mode}", mount.target)
}

#[test]
fn compose_makes_the_machines_that_the_harness_makes() {
    let compose = compose();
    for name in [VPS, GPU] {
        let (file, spec) = (&compose["services"][name.as_str()], setting().machine(&name));
        assert_eq!(text(&file["container_name"]), spec.name);
        assert_eq!(text(&file["image"]), spec.image);
        assert_eq!(text(&file["hostname"]), spec.hostname);
        assert_eq!(map(&file["environment"]), spec.environment);
        let hosts: BTreeMap<_, _> = spec
            .hosts
            .iter()
            .map(|(name, at)| (name.clone(), at.to_string()))
            .collect();
        assert_eq!(map(&file["extra_hosts"]), hosts);
        assert_eq!(list(&file["tmpfs"]), spec.tmpfs);
        assert_eq!(
            list(&file["dns"]),
            spec.dns.iter().map(ToString::to_string).collect::<Vec<_>>()
        );
        assert_eq!(list(&file["cap_add"]), spec.privilege.capabilities());
        assert_eq!(file["privileged"], Value::Bool(spec.privilege == Privilege::Full));
        let ports = spec.ports.iter().map(|port| match port.host {
            HostPort::Fixed { port: host, .. } => format!("127.0.0.1:{host}:{}", port.container),
            HostPort::Free => String::new(),
        });
        assert_eq!(list(&file["ports"]), ports.collect::<Vec<_>>());
        let mounts: Vec<_> = spec.mounts.iter().map(|mount| short(mount, &compose)).collect();
        assert_eq!(list(&file["volumes"]), mounts);
        let address = &file["networks"]["wopr-dev"]["ipv4_address"];
        assert_eq!(text(address), setting().addresses[&name].to_string());
        let own = |labels: BTreeMap<String, String>| -> BTreeMap<_, _> {
            labels
                .into_iter()
                .filter(|(key, _)| key.starts_with("wopr."))
                .collect()
        };
        assert_eq!(map(&file["labels"]), own(spec.labels));
    }
    assert_eq!(
        text(&compose["networks"]["wopr-dev"]["name"]),
        setting().network()
    );
}
