//! Proto3 JSON for any message of the contract.

use prost_reflect::{DynamicMessage, MessageDescriptor, prost::Message};

/// Why a message could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No message of that name is in the descriptors.
    #[error("unknown message {0}")]
    UnknownMessage(String),
    /// The bytes are not an encoding of the message.
    #[error("not an encoded {message}: {source}")]
    Decode {
        /// Full name of the message.
        message: String,
        /// What the decoder found.
        source: prost::DecodeError,
    },
    /// The JSON is not one of the message: a wrong type, or an unknown field.
    #[error("not a {message} in JSON: {source}")]
    Json {
        /// Full name of the message.
        message: String,
        /// What the parser found.
        source: serde_json::Error,
    },
}

/// Converts an encoded message, such as `prism.admin.v1.AuditLogEntry`, to proto3 JSON.
/// Fields with their default value are left out.
pub fn to_json(full_name: &str, encoded: &[u8]) -> Result<serde_json::Value, Error> {
    let message = DynamicMessage::decode(descriptor(full_name)?, encoded)
        .map_err(|source| Error::Decode { message: full_name.to_owned(), source })?;
    serde_json::to_value(&message).map_err(|source| Error::Json { message: full_name.to_owned(), source })
}

/// Converts a message to proto3 JSON; see [`to_json`].
pub fn message_to_json<M: prost::Message + prost::Name>(message: &M) -> Result<serde_json::Value, Error> {
    to_json(&M::full_name(), &message.encode_to_vec())
}

/// Converts proto3 JSON to the encoding of the message; unknown fields are errors.
pub fn from_json(full_name: &str, json: &serde_json::Value) -> Result<Vec<u8>, Error> {
    DynamicMessage::deserialize(descriptor(full_name)?, json)
        .map(|message| message.encode_to_vec())
        .map_err(|source| Error::Json { message: full_name.to_owned(), source })
}

fn descriptor(full_name: &str) -> Result<MessageDescriptor, Error> {
    crate::descriptor_pool().get_message_by_name(full_name).ok_or_else(|| Error::UnknownMessage(full_name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::v1::AuditLogEntry;

    fn entry() -> AuditLogEntry {
        AuditLogEntry {
            id: "e1".to_owned(),
            timestamp: Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }),
            sequence: 7,
            hash: vec![1_u8, 2, 3].into(),
            metadata: [("k".to_owned(), "v".to_owned())].into(),
            error: Some(String::new()),
            ..Default::default()
        }
    }

    #[test]
    fn prints_and_reads_proto3_json() {
        let json = message_to_json(&entry()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "id": "e1",
                "timestamp": "1970-01-01T00:00:01.500Z",
                "metadata": {"k": "v"},
                "error": "",
                "sequence": "7",
                "hash": "AQID",
            })
        );
        let encoded = from_json("prism.admin.v1.AuditLogEntry", &json).unwrap();
        assert_eq!(AuditLogEntry::decode(encoded.as_slice()).unwrap(), entry());
    }

    #[test]
    fn refuses_what_the_contract_does_not_know() {
        let unknown = serde_json::json!({"nonsense": 1});
        assert!(matches!(to_json("prism.No", &[]), Err(Error::UnknownMessage(_))));
        assert!(matches!(to_json("prism.admin.v1.AuditLogEntry", &[0xff]), Err(Error::Decode { .. })));
        assert!(matches!(from_json("prism.admin.v1.AuditLogEntry", &unknown), Err(Error::Json { .. })));
    }
}
