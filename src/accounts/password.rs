//! Password hashes: argon2id in PHC strings, made and checked on the pool of `shard::offload`.
//!
//! A stored hash says itself how dear it is; it is believed only within bounds, so that a hostile row cannot take all
//! memory. Who may try how often is for `slowdown`.

use std::fmt;

use argon2::password_hash::phc::{PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Bytes of a password. Longer ones are refused before anything is hashed.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// KiB that a stored hash may ask for, and passes over them.
const STORED_MEMORY_KIB_MAX: u32 = 256 << 10;
const STORED_PASSES_MAX: u32 = 16;
const STORED_LANES_MAX: u32 = 16;
/// KiB times passes of a stored hash: what all its bounds at once would take is too much.
const STORED_WORK_MAX: u64 = 1 << 20;

const OUTPUT_BYTES: usize = 32;

/// The blocks that a thread hashes in, kept from one hash to the next: fresh pages for each would cost a tenth more.
pub type Scratch = Vec<Block>;

/// How dear a new hash is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// KiB of memory.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

/// The OWASP Password Storage Cheat Sheet's for argon2id: 19 MiB, two passes, one lane.
impl Default for Cost {
    fn default() -> Self {
        Self { memory_kib: 19 << 10, passes: 2 }
    }
}

/// What came of a check.
#[derive(Debug, PartialEq, Eq)]
pub enum PasswordCheck {
    /// It is the password. If its hash was not made with today's cost, here is one that is.
    Right(Option<StoredHash>),
    /// It is not, or there is no such user.
    Wrong,
    /// What is stored is no hash that could be checked: no password is right.
    Unusable,
}

/// A PHC string as it is stored. Its `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredHash(Zeroizing<String>);

impl StoredHash {
    /// As it came out of a store.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// As it goes into one.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for StoredHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredHash(***)")
    }
}

/// Why there is no hash: the system has no random bytes, or no memory.
#[derive(Debug, thiserror::Error)]
#[error("the password cannot be hashed: {0}")]
pub struct HashError(&'static str);

/// Makes and checks hashes. One per process; shared by the threads of the pool.
#[derive(Debug)]
pub struct Hasher {
    params: Params,
}

impl Hasher {
    /// For hashes of this cost; it is within argon2's own bounds.
    pub fn new(cost: Cost) -> Result<Self, HashError> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, Some(OUTPUT_BYTES));
        Ok(Self { params: params.map_err(|_| HashError("argon2 does not take this cost"))? })
    }

    /// A fresh hash.
    pub fn hash(&self, scratch: &mut Scratch, password: &str) -> Result<StoredHash, HashError> {
        let mut salt = [0; Salt::RECOMMENDED_LENGTH];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut salt)
            .map_err(|_| HashError("the system has no random bytes"))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, self.params.clone());
        let output = compute(scratch, &argon2, password, &salt, OUTPUT_BYTES)
            .ok_or(HashError("argon2 does not take this password"))?;
        let encode = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, bytes);
        let (memory, passes) = (self.params.m_cost(), self.params.t_cost());
        Ok(StoredHash::new(format!("$argon2id$v=19$m={memory},t={passes},p=1${}${}", encode(&salt), encode(&output))))
    }

    /// Checks a password against what is stored. Without anything usable stored it takes as long and says no.
    pub fn verify(&self, scratch: &mut Scratch, password: &str, stored: Option<&StoredHash>) -> PasswordCheck {
        let Some(stored) = stored else {
            self.spend(scratch, password);
            return PasswordCheck::Wrong;
        };
        let Some(parsed) = Parsed::of(stored.as_str()) else {
            self.spend(scratch, password);
            return PasswordCheck::Unusable;
        };
        let output = compute(scratch, &parsed.argon2, password, &parsed.salt, parsed.expected.len());
        if scratch.len() > self.params.block_count() {
            // A dearer hash than ours was a guest: its memory is not kept.
            scratch.truncate(self.params.block_count());
            scratch.shrink_to_fit();
        }
        if !output.is_some_and(|output| bool::from(output.ct_eq(&parsed.expected))) {
            return PasswordCheck::Wrong;
        }
        let better = (!parsed.is_as_good_as(&self.params)).then(|| self.hash(scratch, password).ok()).flatten();
        PasswordCheck::Right(better)
    }

    /// What a check costs, for nothing.
    fn spend(&self, scratch: &mut Scratch, password: &str) {
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, self.params.clone());
        let output = compute(scratch, &argon2, password, &[0; Salt::RECOMMENDED_LENGTH], OUTPUT_BYTES);
        std::hint::black_box(output);
    }
}

/// A stored hash within bounds.
struct Parsed {
    algorithm: Algorithm,
    params: Params,
    argon2: Argon2<'static>,
    salt: Vec<u8>,
    expected: Zeroizing<Vec<u8>>,
}

impl Parsed {
    fn of(text: &str) -> Option<Self> {
        let hash = PasswordHash::new(text).ok()?;
        let algorithm = Algorithm::try_from(hash.algorithm.as_str()).ok()?;
        let version = Version::try_from(hash.version.unwrap_or(0x13)).ok()?;
        let params = Params::try_from(&hash).ok()?;
        let (memory, passes, lanes) = (params.m_cost(), params.t_cost(), params.p_cost());
        let work = u64::from(memory) * u64::from(passes);
        if memory > STORED_MEMORY_KIB_MAX
            || passes > STORED_PASSES_MAX
            || lanes > STORED_LANES_MAX
            || work > STORED_WORK_MAX
        {
            return None;
        }
        let (salt, expected) = (hash.salt?, hash.hash?);
        let (salt, expected) = (salt.to_vec(), Zeroizing::new(expected.as_bytes().to_vec()));
        Some(Self { algorithm, argon2: Argon2::new(algorithm, version, params.clone()), params, salt, expected })
    }

    fn is_as_good_as(&self, params: &Params) -> bool {
        self.algorithm == Algorithm::Argon2id
            && (self.params.m_cost(), self.params.t_cost(), self.params.p_cost())
                == (params.m_cost(), params.t_cost(), params.p_cost())
            && self.expected.len() >= OUTPUT_BYTES
    }
}

fn compute(
    scratch: &mut Scratch,
    argon2: &Argon2<'_>,
    password: &str,
    salt: &[u8],
    length: usize,
) -> Option<Zeroizing<Vec<u8>>> {
    let blocks = argon2.params().block_count();
    if scratch.len() < blocks {
        scratch.resize(blocks, Block::default());
    }
    let mut output = Zeroizing::new(vec![0; length]);
    argon2.hash_password_into_with_memory(password.as_bytes(), salt, &mut output, scratch.get_mut(..blocks)?).ok()?;
    Some(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Cost = Cost { memory_kib: 64, passes: 1 };

    fn hasher(cost: Cost) -> Hasher {
        Hasher::new(cost).expect("a cost that argon2 takes")
    }

    #[test]
    fn a_hash_says_what_it_is_and_fits_its_password_alone() {
        let hasher = hasher(Cost::default());
        let mut scratch = Scratch::new();
        let stored = hasher.hash(&mut scratch, "correct horse").expect("hashed");
        assert!(stored.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", stored.as_str());
        assert_eq!(hasher.verify(&mut scratch, "correct horse", Some(&stored)), PasswordCheck::Right(None));
        assert_eq!(hasher.verify(&mut scratch, "correct horsf", Some(&stored)), PasswordCheck::Wrong);
        assert_eq!(hasher.verify(&mut scratch, "", Some(&stored)), PasswordCheck::Wrong);
        assert_ne!(hasher.hash(&mut scratch, "correct horse").expect("hashed"), stored, "salted");
        assert_eq!(format!("{stored:?}"), "StoredHash(***)");
    }

    #[test]
    fn hashes_of_others_are_checked_and_made_anew() {
        // Test vectors of the reference implementation (argon2i and argon2id, version 19).
        let vectors = [
            "$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$iekCn0Y3spW+sCcFanM2xBT63UP2sghkUoHLIUpWRS8",
            "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
            "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
        ];
        let hasher = hasher(CHEAP);
        let mut scratch = Scratch::new();
        for vector in vectors {
            let stored = StoredHash::new(vector.to_owned());
            let PasswordCheck::Right(Some(better)) = hasher.verify(&mut scratch, "password", Some(&stored)) else {
                panic!("{vector}")
            };
            assert_eq!(hasher.verify(&mut scratch, "password", Some(&better)), PasswordCheck::Right(None));
            assert_eq!(hasher.verify(&mut scratch, "passwore", Some(&stored)), PasswordCheck::Wrong);
        }
    }

    #[test]
    fn what_is_no_hash_or_too_dear_fits_nothing() {
        let salt_and_hash = "$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";
        let hostile = [
            "",
            "!",
            "password",
            "$2b$12$KIXQJYYm1c2Qh5x3zWnL9uWcVxV1m0b5f3J3rT6o1Q9n8y7u6t5s4",
            "$argon2id$v=19$m=4194304,t=2,p=1",
            "$argon2id$v=19$m=4294967295,t=4294967295,p=1",
            "$argon2id$v=19$m=262144,t=16,p=1",
            "$argon2id$v=19$m=64,t=1000000,p=1",
            "$argon2id$v=19$m=65536,t=1,p=255",
            "$argon2id$v=20$m=64,t=1,p=1",
            "$argon2id$v=19$m=0,t=0,p=0",
        ];
        let hasher = hasher(CHEAP);
        let mut scratch = Scratch::new();
        for text in hostile {
            for text in [text.to_owned(), format!("{text}{salt_and_hash}")] {
                let stored = StoredHash::new(text.clone());
                assert_eq!(hasher.verify(&mut scratch, "password", Some(&stored)), PasswordCheck::Unusable, "{text}");
            }
        }
        let unfinished = StoredHash::new("$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ".to_owned());
        assert_eq!(hasher.verify(&mut scratch, "password", Some(&unfinished)), PasswordCheck::Unusable);
        assert!(scratch.len() <= 64, "no memory was taken for them");
    }

    #[test]
    fn an_unknown_user_costs_what_a_wrong_password_costs() {
        let hasher = hasher(Cost { memory_kib: 1024, passes: 2 });
        let mut scratch = Scratch::new();
        let stored = hasher.hash(&mut scratch, "correct horse").expect("hashed");
        let mut cost = [Vec::new(), Vec::new()];
        // Of this thread alone, and the least of many: what else the machine does is nobody's cost.
        let cpu_time = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            std::time::Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
        };
        for _ in 0..40 {
            for (costs, stored) in cost.iter_mut().zip([Some(&stored), None]) {
                let began = cpu_time();
                assert_eq!(hasher.verify(&mut scratch, "wrong", stored), PasswordCheck::Wrong);
                costs.push(cpu_time().saturating_sub(began));
            }
        }
        let [known, unknown] = cost.map(|costs| costs.into_iter().min().expect("some").as_secs_f64());
        assert!((0.8..1.25).contains(&(known / unknown)), "{known} s against {unknown} s");
    }
}
