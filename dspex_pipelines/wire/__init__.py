"""What both ends of the wire share: the protocol version, limits, and the codec. No sockets here."""
