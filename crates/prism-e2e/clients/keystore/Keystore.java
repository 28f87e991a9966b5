// Reads a PKCS#12 keystore as any program on a JVM would, and uses what is in it.

import java.io.FileInputStream;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.Signature;
import java.security.cert.X509Certificate;
import java.util.Collections;

public class Keystore {
    public static void main(String[] arguments) throws Exception {
        char[] password = arguments[1].toCharArray();
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (FileInputStream file = new FileInputStream(arguments[0])) {
            store.load(file, password);
        }
        for (String alias : Collections.list(store.aliases())) {
            PrivateKey key = (PrivateKey) store.getKey(alias, password);
            var chain = store.getCertificateChain(alias);
            X509Certificate leaf = (X509Certificate) chain[0];
            X509Certificate authority = (X509Certificate) chain[chain.length - 1];
            leaf.verify(authority.getPublicKey());
            Signature signing = Signature.getInstance("SHA256withECDSA");
            signing.initSign(key);
            signing.update(alias.getBytes("UTF-8"));
            byte[] signature = signing.sign();
            Signature verifying = Signature.getInstance("SHA256withECDSA");
            verifying.initVerify(leaf.getPublicKey());
            verifying.update(alias.getBytes("UTF-8"));
            if (!verifying.verify(signature)) {
                throw new IllegalStateException("the key is not that of the certificate");
            }
            System.out.println(alias + " " + leaf.getSubjectX500Principal() + " " + chain.length);
        }
    }
}
