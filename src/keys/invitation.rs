//! Invitations and tickets: how a device that is no member yet proves that an admin asked it in.
//!
//! An [`Invitation`] is signed by the group key, so that any admin can check one that another admin issued; it holds only the hash of
//! the secret. A [`Ticket`] is the invitation with the secret, in a text form with a checksum that `dfs invite` prints and `dfs join`
//! reads. Invariant: the secret is wiped when dropped, and no `Debug` or error shows it. Formats: `docs/protocol.md`.

use data_encoding::BASE32_NOPAD;
use zeroize::{Zeroize, Zeroizing};

use crate::base::GroupId;
use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};

use super::certificate::Role;
use super::{GroupKey, verify};

/// Most admin addresses in an invitation.
pub const ADMINS_MAX: usize = 8;
/// Longest address, in bytes.
pub const ADDRESS_MAX: usize = 256;
/// Most devices that one invitation admits.
pub const USES_MAX: u16 = 1024;
/// Longest encoded invitation, in bytes.
pub const INVITATION_MAX: usize =
    4 + 1 + 32 + 16 + 1 + 8 + 8 + 2 + 32 + 1 + ADMINS_MAX * (32 + 2 + ADDRESS_MAX) + 64;
/// Longest ticket text that is looked at, in bytes; white space included.
pub const TICKET_TEXT_MAX: usize = 8192;

const MAGIC: &[u8; 4] = b"dfsI";
const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"dfs invitation v1\0";
const SECRET_CONTEXT: &str = "dfs 2026 invitation secret";
const CHECKSUM_CONTEXT: &str = "dfs 2026 ticket checksum";
const CHECKSUM_LEN: usize = 4;
const PREFIX: &str = "dfs1-";

/// Random, given to an invitation when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InvitationId(pub [u8; 16]);

impl std::fmt::Display for InvitationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// Where an admin may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminAddress {
    /// The admin's Ed25519 device public key.
    pub device: [u8; 32],
    /// A network address in multiaddr form, such as `/ip4/192.0.2.1/tcp/8080`; at most [`ADDRESS_MAX`] bytes.
    pub address: String,
}

/// Why an invitation is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// The bytes are no invitation.
    #[error("the invitation cannot be read: {0}")]
    Malformed(#[from] DecodeError),
    /// It is to another group.
    #[error("the invitation is to another group ({})", .0.short())]
    OtherGroup(GroupId),
    /// The group key did not sign it.
    #[error("the invitation is forged: the group key did not sign it")]
    Forged,
    /// It is no longer valid.
    #[error("the invitation expired at {expired} (Unix time), it is {now} here")]
    Expired {
        /// Its expiry date.
        expired: UnixSecs,
        /// The clock here.
        now: UnixSecs,
    },
    /// The secret is not the one that was issued with it.
    #[error("the secret does not belong to the invitation")]
    WrongSecret,
}

/// Why a text is no ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Empty, too long, or without the prefix.
    #[error("this is no ticket: a ticket begins with {PREFIX}")]
    NotATicket,
    /// A character that tickets do not contain.
    #[error("the ticket has a character that cannot be in one, at position {at}: copy it again in full")]
    BadCharacter {
        /// Position among the characters that are not white space, from zero.
        at: usize,
    },
    /// The checksum is wrong.
    #[error("the ticket is mistyped or incomplete (its checksum is wrong): copy it again in full")]
    Checksum,
    /// The checksum is right but the content is not what this version expects.
    #[error("the ticket cannot be read, perhaps it was made by a newer version: {0}")]
    Malformed(#[from] DecodeError),
    /// The content is a ticket but no valid one.
    #[error("{0}")]
    Invalid(#[from] InvitationError),
    /// The operating system gave no random numbers.
    #[error("no random numbers could be had from the operating system")]
    NoRandom,
}

/// What an admin promises: whoever shows the secret may join, in a role, until a date, so many times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// The group's Ed25519 public key.
    pub group_public: [u8; 32],
    /// Which invitation.
    pub id: InvitationId,
    /// The role it gives.
    pub role: Role,
    /// Date of issue.
    pub issued: UnixSecs,
    /// Last second of validity.
    pub expires: UnixSecs,
    /// How many devices it admits.
    pub uses: u16,
    /// BLAKE3 derive_key of the secret.
    pub secret_hash: [u8; 32],
    /// Admins that may be asked, at most [`ADMINS_MAX`].
    pub admins: Vec<AdminAddress>,
    signature: [u8; 64],
}

impl Invitation {
    /// The group's id.
    pub fn group(&self) -> GroupId {
        GroupId(*blake3::hash(&self.group_public).as_bytes())
    }

    /// Binary form, at most [`INVITATION_MAX`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.body();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads the binary form. Nothing is verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let invitation = Self::read(&mut r)?;
        r.finish()?;
        Ok(invitation)
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if r.array::<4>()? != *MAGIC {
            return Err(DecodeError::Invalid("not an invitation"));
        }
        if r.u8()? != VERSION {
            return Err(DecodeError::Invalid("an invitation of an unknown version"));
        }
        let group_public = r.array()?;
        let id = InvitationId(r.array()?);
        let role = Role::from_byte(r.u8()?)?;
        let (issued, expires, uses) = (r.u64()?, r.u64()?, r.u16()?);
        if uses == 0 || uses > USES_MAX {
            return Err(DecodeError::Invalid("an invitation for no device or too many"));
        }
        let secret_hash = r.array()?;
        let count = usize::from(r.u8()?);
        if count > ADMINS_MAX {
            return Err(DecodeError::Invalid("too many addresses in an invitation"));
        }
        let mut admins = Vec::with_capacity(count);
        for _ in 0..count {
            admins.push(AdminAddress {
                device: r.array()?,
                address: r.str16(ADDRESS_MAX)?.to_owned(),
            });
        }
        Ok(Self {
            group_public,
            id,
            role,
            issued,
            expires,
            uses,
            secret_hash,
            admins,
            signature: r.array()?,
        })
    }

    /// Checks that the group with this public key issued it and that it has not expired, by the clock of the admin who is asked.
    pub fn verify(&self, group_public: &[u8; 32], now: UnixSecs) -> Result<(), InvitationError> {
        if self.group_public != *group_public {
            return Err(InvitationError::OtherGroup(self.group()));
        }
        if !verify(group_public, &self.signed_bytes(), &self.signature) {
            return Err(InvitationError::Forged);
        }
        if now > self.expires {
            return Err(InvitationError::Expired {
                expired: self.expires,
                now,
            });
        }
        Ok(())
    }

    /// Checks, in constant time, that this is the secret it was issued with.
    pub fn check_secret(&self, secret: &[u8; 32]) -> Result<(), InvitationError> {
        if blake3::Hash::from_bytes(hash_secret(secret)) == blake3::Hash::from_bytes(self.secret_hash) {
            Ok(())
        } else {
            Err(InvitationError::WrongSecret)
        }
    }

    fn body(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(INVITATION_MAX);
        w.raw(MAGIC)
            .u8(VERSION)
            .raw(&self.group_public)
            .raw(&self.id.0)
            .u8(self.role.to_byte())
            .u64(self.issued)
            .u64(self.expires)
            .u16(self.uses)
            .raw(&self.secret_hash)
            .u8(self.admins.len() as u8);
        for admin in &self.admins {
            w.raw(&admin.device).bytes16(admin.address.as_bytes());
        }
        w.into_vec()
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = CONTEXT.to_vec();
        bytes.extend_from_slice(&self.body());
        bytes
    }
}

/// An invitation with its secret: whoever holds it can join.
pub struct Ticket {
    invitation: Invitation,
    secret: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("invitation", &self.invitation)
            .finish_non_exhaustive()
    }
}

impl Ticket {
    /// A new invitation of the group with a fresh secret. `uses` is brought into 1 to [`USES_MAX`]; addresses that are too long and
    /// those beyond [`ADMINS_MAX`] are left out.
    pub fn issue(
        group: &GroupKey,
        role: Role,
        issued: UnixSecs,
        expires: UnixSecs,
        uses: u16,
        admins: Vec<AdminAddress>,
    ) -> Result<Self, TicketError> {
        let mut secret = Zeroizing::new([0; 32]);
        let mut id = [0; 16];
        getrandom::fill(secret.as_mut()).map_err(|_| TicketError::NoRandom)?;
        getrandom::fill(&mut id).map_err(|_| TicketError::NoRandom)?;
        Ok(Self::with(
            group,
            InvitationId(id),
            secret,
            role,
            (issued, expires),
            uses,
            admins,
        ))
    }

    fn with(
        group: &GroupKey,
        id: InvitationId,
        secret: Zeroizing<[u8; 32]>,
        role: Role,
        (issued, expires): (UnixSecs, UnixSecs),
        uses: u16,
        mut admins: Vec<AdminAddress>,
    ) -> Self {
        admins.retain(|admin| admin.address.len() <= ADDRESS_MAX);
        admins.truncate(ADMINS_MAX);
        let mut invitation = Invitation {
            group_public: group.public(),
            id,
            role,
            issued,
            expires,
            uses: uses.clamp(1, USES_MAX),
            secret_hash: hash_secret(&secret),
            admins,
            signature: [0; 64],
        };
        invitation.signature = group.sign(&invitation.signed_bytes());
        Self { invitation, secret }
    }

    /// The part that is no secret.
    pub fn invitation(&self) -> &Invitation {
        &self.invitation
    }

    /// The secret: to be shown to nobody but a verified admin of the group.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The text form: `dfs1-`, then base32 (RFC 4648, lower case, no padding) of invitation, secret and a four-byte checksum.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(self.invitation.encode());
        // One allocation, so that growing leaves no copy of the secret behind.
        let mut whole = Zeroizing::new(Vec::with_capacity(bytes.len() + 32 + CHECKSUM_LEN));
        whole.append(&mut bytes);
        whole.extend_from_slice(self.secret.as_ref());
        let sum = checksum(&whole);
        whole.extend_from_slice(&sum);
        let mut upper = Zeroizing::new(BASE32_NOPAD.encode(&whole));
        upper.make_ascii_lowercase();
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + upper.len()));
        text.push_str(PREFIX);
        text.push_str(&upper);
        text
    }

    /// Reads the text form; white space anywhere and upper case are forgiven. Checks the checksum, the signature and that the secret
    /// belongs to the invitation, not the expiry date: the admin's clock decides that.
    pub fn from_text(text: &str) -> Result<Self, TicketError> {
        if text.len() > TICKET_TEXT_MAX {
            return Err(TicketError::NotATicket);
        }
        let mut packed = Zeroizing::new(String::with_capacity(text.len()));
        packed.extend(
            text.chars()
                .filter(|c| !c.is_whitespace())
                .map(|c| c.to_ascii_uppercase()),
        );
        let prefix = PREFIX.to_ascii_uppercase();
        let code = packed.strip_prefix(&prefix).ok_or(TicketError::NotATicket)?;
        let mut bytes = Zeroizing::new(vec![0; code.len() * 5 / 8]);
        let wanted = BASE32_NOPAD
            .decode_len(code.len())
            .map_err(|_| TicketError::Checksum)?;
        bytes.truncate(wanted);
        BASE32_NOPAD
            .decode_mut(code.as_bytes(), &mut bytes)
            .map_err(|bad| match bad.error.kind {
                data_encoding::DecodeKind::Symbol => TicketError::BadCharacter {
                    at: PREFIX.len() + bad.error.position,
                },
                _ => TicketError::Checksum,
            })?;
        let (body, sum) = bytes
            .split_at_checked(bytes.len().saturating_sub(CHECKSUM_LEN))
            .ok_or(TicketError::Checksum)?;
        if sum != checksum(body) {
            return Err(TicketError::Checksum);
        }
        let mut r = Reader::new(body);
        let invitation = Invitation::read(&mut r)?;
        let mut raw = r.array::<32>()?;
        let secret = Zeroizing::new(raw);
        raw.zeroize();
        r.finish()?;
        invitation.verify(&invitation.group_public.clone(), 0)?;
        invitation.check_secret(&secret)?;
        Ok(Self { invitation, secret })
    }
}

fn hash_secret(secret: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key(SECRET_CONTEXT, secret)
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let full = blake3::derive_key(CHECKSUM_CONTEXT, bytes);
    [full[0], full[1], full[2], full[3]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::RootSecret;
    use proptest::prelude::*;

    fn group() -> GroupKey {
        GroupKey::from_root(&RootSecret::from_bytes([7; 32]))
    }

    fn ticket() -> Ticket {
        Ticket::with(
            &group(),
            InvitationId([1; 16]),
            Zeroizing::new([2; 32]),
            Role::Reader,
            (1_000_000, 1_086_400),
            1,
            vec![AdminAddress {
                device: [3; 32],
                address: "/ip4/192.0.2.1/tcp/8080".into(),
            }],
        )
    }

    #[test]
    fn golden_text_of_version_1() {
        let text = ticket().to_text();
        assert!(text.starts_with("dfs1-mrthgsib"), "{}", &text[..20]);
        assert_eq!(
            blake3::hash(text.as_bytes()).to_hex().as_str(),
            "7923673cba7b0a092f2dabf1a8491dc49238177b6946c8e1e60d58bce142de4f",
            "the ticket format changed: raise its version"
        );
    }

    #[test]
    fn text_round_trips_and_forgives_white_space_and_case() {
        let text = ticket().to_text();
        let pasted = format!("  {}\n{}\n", &text[..40], text[40..].to_uppercase());
        let read = Ticket::from_text(&pasted).unwrap();
        assert_eq!(read.invitation(), ticket().invitation());
        assert_eq!(read.secret(), &[2; 32]);
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", ticket());
        assert!(
            !shown.contains("secret:") && !shown.contains("2, 2, 2"),
            "{shown}"
        );
    }

    #[test]
    fn mistakes_are_told_apart() {
        let text = ticket().to_text();
        assert_eq!(Ticket::from_text("hello").unwrap_err(), TicketError::NotATicket);
        assert_eq!(Ticket::from_text("").unwrap_err(), TicketError::NotATicket);
        assert_eq!(Ticket::from_text("dfs1-").unwrap_err(), TicketError::Checksum);
        assert_eq!(
            Ticket::from_text(&text[..text.len() - 8]).unwrap_err(),
            TicketError::Checksum
        );
        let mut odd = text.to_string();
        odd.replace_range(10..11, "1");
        assert_eq!(
            Ticket::from_text(&odd).unwrap_err(),
            TicketError::BadCharacter { at: 10 }
        );
    }

    #[test]
    fn expiry_and_group_are_checked() {
        let invitation = ticket().invitation().clone();
        let public = group().public();
        assert_eq!(invitation.verify(&public, 1_050_000), Ok(()));
        assert_eq!(invitation.verify(&public, 1_086_400), Ok(()));
        assert!(matches!(
            invitation.verify(&public, 1_086_401),
            Err(InvitationError::Expired { .. })
        ));
        assert!(matches!(
            invitation.verify(&[1; 32], 0),
            Err(InvitationError::OtherGroup(_))
        ));
        let mut more = invitation.clone();
        more.uses = 100;
        assert_eq!(more.verify(&public, 0), Err(InvitationError::Forged));
        assert_eq!(
            invitation.check_secret(&[9; 32]),
            Err(InvitationError::WrongSecret)
        );
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_always_noticed(at in 5usize..1000, letter in "[a-z2-7]") {
            let text = ticket().to_text();
            let at = 5 + at % (text.len() - 5);
            prop_assume!(text[at..=at] != letter);
            let mut typo = text.to_string();
            typo.replace_range(at..=at, &letter);
            prop_assert!(Ticket::from_text(&typo).is_err());
        }

        #[test]
        fn any_invitation_round_trips(role in 0u8..5, issued: u64, expires: u64, uses in 1u16..=USES_MAX, count in 0usize..=ADMINS_MAX) {
            let admins = vec![AdminAddress { device: [5; 32], address: "/dns/a.example/tcp/1".into() }; count];
            let ticket = Ticket::with(&group(), InvitationId([4; 16]), Zeroizing::new([6; 32]), Role::from_byte(role).unwrap(), (issued, expires), uses, admins);
            let bytes = ticket.invitation().encode();
            prop_assert!(bytes.len() <= INVITATION_MAX);
            prop_assert_eq!(&Invitation::decode(&bytes).unwrap(), ticket.invitation());
            let text = ticket.to_text();
            let read = Ticket::from_text(&text).unwrap();
            prop_assert_eq!(read.invitation(), ticket.invitation());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in ".{0,60}") {
            let _ = Invitation::decode(&bytes);
            let _ = Ticket::from_text(&text);
            let _ = Ticket::from_text(&format!("dfs1-{text}"));
        }
    }
}
