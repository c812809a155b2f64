//! What commands do with the group: list it, remove a device, change a role; the same with a daemon and without one.

use crate::control::{Changed, Failure, Group, Member};
use crate::keys::Role;
use crate::node::{self, Members, PeerInfo};

/// Fewest digits of a device id that are taken for one.
const PREFIX_MIN: usize = 4;

/// Everybody.
pub(super) fn list(members: &Members, peers: &[PeerInfo]) -> Group {
    Group {
        epoch: members.epoch(),
        members: members.list(peers).into_iter().map(shown).collect(),
    }
}

/// Removes a device.
pub(super) fn remove(members: &Members, peers: &[PeerInfo], prefix: &str) -> Result<Changed, Failure> {
    let what = "cannot remove the device";
    let member = find(members, peers, prefix, what)?;
    if member.own {
        let hint = "remove it with `dfs remove` on the device of another admin";
        return Err(Failure::new(what, "it is this device itself", hint));
    }
    members
        .remove(&member.device)
        .map_err(|why| Failure::new(what, why, ""))?;
    Ok(Changed {
        member: shown(member),
        role: None,
        epoch: members.epoch(),
    })
}

/// Gives a device another role.
pub(super) fn set_role(
    members: &Members,
    peers: &[PeerInfo],
    prefix: &str,
    role: &str,
) -> Result<Changed, Failure> {
    let what = "cannot change the role";
    let role: Role = role
        .parse()
        .map_err(|e| Failure::new(what, e, "choose one of them"))?;
    let member = find(members, peers, prefix, what)?;
    let mut others = members.list(peers).into_iter().filter(|other| !other.own);
    if member.own && role < Role::Admin && !others.any(|other| other.role == Some(Role::Admin)) {
        let hint = "make another device an admin first";
        return Err(Failure::new(what, "this device is the only admin", hint));
    }
    members
        .set_role(&member.device, role)
        .map_err(|why| Failure::new(what, why, ""))?;
    Ok(Changed {
        member: shown(member),
        role: Some(role.to_string()),
        epoch: members.epoch(),
    })
}

/// The one device whose id begins so.
fn find(members: &Members, peers: &[PeerInfo], prefix: &str, what: &str) -> Result<node::Member, Failure> {
    let hint = "`dfs members` lists them; give as many digits as it takes";
    let prefix = prefix.to_ascii_lowercase();
    if prefix.len() < PREFIX_MIN || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        let why = format!(
            "{prefix:?} is not the beginning of a device id: {PREFIX_MIN} hexadecimal digits or more"
        );
        return Err(Failure::new(what, why, hint));
    }
    let all = members.list(peers).into_iter();
    let mut found: Vec<node::Member> = all
        .filter(|member| member.device.to_string().starts_with(&prefix))
        .collect();
    match (found.pop(), found.len()) {
        (Some(member), 0) => Ok(member),
        (None, _) => Err(Failure::new(
            what,
            format!("no device of the group begins with {prefix}"),
            hint,
        )),
        (Some(_), more) => Err(Failure::new(
            what,
            format!("{} devices begin with {prefix}", more + 1),
            hint,
        )),
    }
}

fn shown(member: node::Member) -> Member {
    Member {
        device: member.device,
        name: member.name,
        role: member.role.map(|role| role.to_string()),
        zone: member.zone,
        since: member.since,
        last_seen: member.last_seen,
        connected: member.connected,
        removed: member.removed,
        own: member.own,
    }
}
