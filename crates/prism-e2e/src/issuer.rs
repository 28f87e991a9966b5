//! An issuer of the test's own: publishes keys like a real one, and signs whatever it is told to.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// One key for each algorithm.
pub struct Keys {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
    suffix: String,
}

impl Keys {
    /// New keys, with ids such as `RS256-<suffix>`.
    pub fn generate(suffix: &str) -> Self {
        Self {
            rsa: RsaKeyPair::generate(rsa::KeySize::Rsa2048).expect("an RSA key"),
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a P-256 key"),
            ed25519: Ed25519KeyPair::generate().expect("an Ed25519 key"),
            suffix: suffix.to_owned(),
        }
    }

    /// The id of the key for an algorithm.
    pub fn kid(&self, algorithm: &str) -> String {
        format!("{algorithm}-{}", self.suffix)
    }

    /// The public keys as an issuer publishes them.
    pub fn jwks(&self) -> Value {
        let modulus = self.modulus();
        let point = self.p256.public_key().as_ref();
        let shared = |algorithm: &str| json!({"kid": self.kid(algorithm), "alg": algorithm, "use": "sig"});
        let mut keys = [shared("RS256"), shared("ES256"), shared("EdDSA")];
        let parts = [
            json!({"kty": "RSA", "n": encode(&modulus), "e": "AQAB"}),
            json!({"kty": "EC", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": encode(self.ed25519.public_key().as_ref())}),
        ];
        for (key, part) in keys.iter_mut().zip(parts) {
            key.as_object_mut().expect("an object").extend(part.as_object().expect("an object").clone());
        }
        json!({"keys": keys})
    }

    /// The RSA public key in DER: what a careless verifier would take for the secret of an HMAC.
    pub fn rsa_public_der(&self) -> Vec<u8> {
        self.rsa.public_key().as_der().expect("DER").as_ref().to_vec()
    }

    /// A token with this header and these claims, signed with the key for `algorithm`, whatever the header says of it.
    pub fn sign_with(&self, algorithm: &str, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let random = SystemRandom::new();
        let signature = match algorithm {
            "RS256" => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).expect("a signature");
                signature
            }
            "ES256" => self.p256.sign(&random, message.as_bytes()).expect("a signature").as_ref().to_vec(),
            "EdDSA" => self.ed25519.sign(message.as_bytes()).as_ref().to_vec(),
            other => panic!("no key for {other}"),
        };
        format!("{message}.{}", encode(&signature))
    }

    /// A token as an issuer makes it.
    pub fn sign(&self, algorithm: &str, claims: &Value) -> String {
        self.sign_with(algorithm, &json!({"alg": algorithm, "kid": self.kid(algorithm), "typ": "at+jwt"}), claims)
    }

    /// The number of 256 bytes that begins with its highest bit, out of `SEQUENCE { INTEGER n, INTEGER e }`.
    fn modulus(&self) -> Vec<u8> {
        let der = self.rsa.public_key().as_ref();
        let at = der.windows(5).position(|bytes| bytes == [0x02, 0x82, 0x01, 0x01, 0x00]).expect("a modulus") + 5;
        der[at..at + 256].to_vec()
    }
}

/// Header and claims, as they are signed.
pub fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()))
}

/// A token whose signature is an HMAC with this secret.
pub fn hs256(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let message = message(header, claims);
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    format!("{message}.{}", encode(aws_lc_rs::hmac::sign(&key, message.as_bytes()).as_ref()))
}

/// base64url without padding.
pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Serves its discovery document and its keys over http on a port of this machine, until it is dropped. It has threads of
/// its own, so that tests with different runtimes can share one.
pub struct Issuer {
    /// Its name, which is where it is.
    pub url: String,
    /// Its keys.
    pub keys: Keys,
    shared: Arc<Published>,
}

struct Published {
    url: String,
    address: SocketAddr,
    jwks: Mutex<Value>,
    fetches: AtomicU32,
    ended: AtomicBool,
}

impl Issuer {
    /// Starts one.
    pub fn start(suffix: &str) -> Self {
        let keys = Keys::generate(suffix);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Published {
            url: format!("http://{address}"),
            address,
            jwks: Mutex::new(keys.jwks()),
            fetches: AtomicU32::new(0),
            ended: AtomicBool::new(false),
        });
        let published = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if published.ended.load(Ordering::SeqCst) {
                    return;
                }
                let published = published.clone();
                std::thread::spawn(move || published.answer(stream));
            }
        });
        Self { url: shared.url.clone(), keys, shared }
    }

    /// Publishes these keys from now on.
    pub fn publish(&self, jwks: Value) {
        *self.shared.jwks.lock().unwrap_or_else(PoisonError::into_inner) = jwks;
    }

    /// How often its keys were fetched.
    pub fn fetches(&self) -> u32 {
        self.shared.fetches.load(Ordering::SeqCst)
    }

    /// The claims of a good token for `sub`, for a plane's audience.
    pub fn claims(&self, audience: &str, sub: &str, groups: &[&str]) -> Value {
        json!({
            "iss": self.url, "sub": sub, "aud": audience, "scope": "prism.admin", "groups": groups,
            "iat": now(), "exp": now() + 3600,
        })
    }

    /// A good token.
    pub fn token(&self, audience: &str, sub: &str, groups: &[&str]) -> String {
        self.keys.sign("ES256", &self.claims(audience, sub, groups))
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for the next connection.
        let _ = TcpStream::connect(self.shared.address);
    }
}

impl Published {
    fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut request = Vec::new();
        let mut chunk = [0; 1024];
        while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            let read = stream.read(&mut chunk).ok()?;
            if read == 0 {
                return None;
            }
            request.extend_from_slice(&chunk[..read]);
        }
        let path = String::from_utf8_lossy(&request).split(' ').nth(1)?.to_owned();
        let body = match path.as_str() {
            "/.well-known/openid-configuration" => {
                json!({"issuer": self.url, "jwks_uri": format!("{}/jwks", self.url)})
            }
            "/jwks" => {
                self.fetches.fetch_add(1, Ordering::SeqCst);
                self.jwks.lock().unwrap_or_else(PoisonError::into_inner).clone()
            }
            _ => json!({}),
        };
        let body = body.to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n", body.len());
        stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes()).ok()
    }
}
