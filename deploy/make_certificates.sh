#!/usr/bin/env bash
# Make a certificate authority of your own, a server certificate, and a client certificate for mutual TLS:
#
#     deploy/make_certificates.sh FOLDER HOST [HOST ...]      host names or IP addresses that clients connect to
#
# FOLDER then holds ca.pem (give it to the clients), ca.key (keep it offline), server.pem, server.key, client.pem, client.key.
# An existing ca.pem and ca.key are used again, so that a certificate can be renewed without touching a client.
set -euo pipefail
[[ $# -ge 2 ]] || { echo "usage: $0 FOLDER HOST [HOST ...]" >&2; exit 2; }
folder=$1
shift
mkdir -p -- "$folder"
cd -- "$folder"
umask 077

names=""
for host in "$@"; do
    if [[ $host =~ ^[0-9.]+$ || $host == *:* ]]; then names+=",IP:$host"; else names+=",DNS:$host"; fi
done

if [[ ! -s ca.key ]]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -keyout ca.key -out ca.pem \
        -subj "/CN=robowire CA" -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" 2> /dev/null
fi

# sign NAME SUBJECT EXTENSIONS: a key and a certificate of one year, signed by the authority
sign() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.csr" -subj "/CN=$2" 2> /dev/null
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -out "$1.pem" -extfile <(printf '%b' "$3") 2> /dev/null
    rm -f -- "$1.csr"
}

# A server of a fleet that asks for certificates (--tls_client_ca) is also a client: of its health checks.
common="basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nauthorityKeyIdentifier=keyid\n"
sign server "$1" "${common}extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=${names#,}\n"
sign client "robowire client" "${common}extendedKeyUsage=clientAuth\n"
chmod 644 ca.pem server.pem client.pem
echo "certificates for $* are in $PWD"
