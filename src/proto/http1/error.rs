//! What a peer can do wrong in HTTP/1.1: a variant for each mistake, with a public sentence that echoes no input.

/// Makes an enum of mistakes out of a table: variant, status, sentence.
macro_rules! mistakes {
    (
        $(#[$meta:meta])*
        $name:ident $(over $inner:ident)? {
            $($variant:ident $status:literal $sentence:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum $name {
            $(
                #[doc = $sentence]
                #[error($sentence)]
                $variant,
            )+
            $(
                /// A mistake that requests and answers have in common.
                #[error(transparent)]
                Head(#[from] $inner),
            )?
        }

        impl $name {
            /// What may be told to whoever made the mistake.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$variant => $sentence,)+
                    $(Self::Head(error) => $inner::sentence(error),)?
                }
            }

            /// The status that refuses it.
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$variant => $status,)+
                    $(Self::Head(error) => $inner::status(error),)?
                }
            }
        }
    };
}

mistakes! {
    /// Mistakes that a request's head and an answer's head have in common.
    ///
    /// The status is that of a request refused for it.
    HeadError {
        TooLarge 431 "the head is larger than is accepted",
        TooManyFields 431 "the head has more fields than are accepted",
        TooManyConnectionOptions 431 "the Connection field lists more options than are accepted",
        BareLf 400 "a line ends in LF without CR",
        BareCr 400 "a CR stands without LF",
        FoldedLine 400 "a field is folded over several lines",
        SpaceBeforeColon 400 "white space stands before the colon of a field",
        BadFieldName 400 "a field name is empty or has a character that is not allowed",
        BadFieldValue 400 "a field value has a control character",
        AmbiguousFieldName 400 "a field name can be mistaken for Content-Length or Transfer-Encoding",
        LengthAndTransferEncoding 400 "Content-Length and Transfer-Encoding are both present",
        SeveralContentLengths 400 "Content-Length is present more than once",
        BadContentLength 400 "Content-Length is not a decimal number within 63 bits",
        SeveralTransferEncodings 400 "Transfer-Encoding is present more than once",
        BadTransferEncoding 400 "Transfer-Encoding does not end in a single chunked",
        UnknownTransferCoding 501 "Transfer-Encoding names a coding other than chunked",
        TransferEncodingInHttp10 400 "Transfer-Encoding is present in an HTTP/1.0 message",
    }
}

mistakes! {
    /// What is wrong with a request's head. The connection cannot be used for another request after any of them.
    RequestError over HeadError {
        BadRequestLine 400 "the request line is malformed",
        MethodTooLong 501 "the method is longer than any that is known",
        TargetTooLong 414 "the request target is longer than is accepted",
        BadTarget 400 "the request target has a character that is not allowed",
        BadTargetForm 400 "the request target is not of the form that its method asks for",
        BadScheme 400 "the scheme of the request target is neither http nor https",
        BadVersion 400 "the protocol version is malformed",
        UnsupportedVersion 505 "the protocol version is neither HTTP/1.1 nor HTTP/1.0",
        MissingHost 400 "the Host field is missing",
        SeveralHosts 400 "the Host field is present more than once",
        BadHost 400 "the host is not a valid host with an optional port",
        HostMismatch 400 "the Host field and the request target disagree",
        UnknownExpectation 417 "the expectation is not 100-continue",
    }
}

/// What is wrong with an answer's head. Its connection cannot be used again; whatever it is, the client gets a 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The status line is malformed.
    #[error("the status line is malformed")]
    BadStatusLine,
    /// The version is not one that is spoken to upstreams.
    #[error("the protocol version is neither HTTP/1.1 nor HTTP/1.0")]
    BadVersion,
    /// There is no such class of status codes.
    #[error("the status code is below 100")]
    BadStatus,
    /// RFC 9112 §6.1, RFC 9110 §8.6: an interim answer has no body, and must not say that it has.
    #[error("an interim answer announces a body")]
    BodyNotAllowed,
    /// A mistake that requests and answers have in common.
    #[error(transparent)]
    Head(#[from] HeadError),
}

mistakes! {
    /// What is wrong with the framing of a body. Its connection cannot be used again.
    BodyError {
        BadChunkSize 400 "a chunk size is not a hexadecimal number",
        ChunkTooLarge 400 "a chunk size does not fit in 63 bits",
        BadChunkExtension 400 "a chunk extension is malformed",
        ChunkLineTooLong 400 "a chunk line is longer than is accepted",
        TooMuchChunkOverhead 400 "the chunks are too small for the lines that announce them",
        BareLf 400 "a line ends in LF without CR",
        BareCr 400 "a CR stands without LF",
        MissingChunkEnd 400 "a chunk is longer than its size says",
        TrailersTooLarge 431 "the trailer section is larger than is accepted",
        TooManyTrailers 431 "the trailer section has more fields than are accepted",
        BadTrailer 400 "a trailer field is malformed",
        Truncated 400 "the body ends before its end",
    }
}
