import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Reads topics of cmc-bridge from beginning to end and checks each record against the contract: the headers, the value, and
 * whether Java's own producer would choose the same partition for the key.
 *
 * <p>Usage: {@code java -cp '<kafka>/libs/*' CheckRecords.java <brokers> <docs/schemas> <topic>...}
 *
 * <p>Exits with 0 if all records conform to the contract, otherwise with 1.
 */
public class CheckRecords {
    private static final Duration LIMIT = Duration.ofSeconds(60);
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final String TYPE = "jp.smtps.cmc.";

    private final Path schemas;
    private final List<String> broken = new ArrayList<>();

    private CheckRecords(Path schemas) {
        this.schemas = schemas;
    }

    public static void main(String[] args) throws IOException {
        if (args.length < 3) {
            System.err.println("usage: CheckRecords <brokers> <docs/schemas> <topic>...");
            System.exit(64);
        }
        CheckRecords check = new CheckRecords(Path.of(args[1]));
        for (String topic : List.of(args).subList(2, args.length)) {
            check.topic(args[0], topic);
        }
        check.broken.forEach(System.out::println);
        System.exit(check.broken.isEmpty() ? 0 : 1);
    }

    private void topic(String brokers, String topic) throws IOException {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", brokers);
        // Java's default is read_uncommitted, which also shows duplicates: the events of aborted transactions.
        properties.put("isolation.level", "read_committed");
        properties.put("enable.auto.commit", "false");
        Map<String, Integer> kinds = new TreeMap<>();
        Map<String, Integer> partitionOfKey = new HashMap<>();
        try (KafkaConsumer<byte[], byte[]> consumer =
                new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            List<TopicPartition> partitions = consumer.partitionsFor(topic, LIMIT).stream()
                    .map(info -> new TopicPartition(topic, info.partition()))
                    .toList();
            // With read_committed, the end is the last stable offset: all transactions before it are complete.
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions, LIMIT);
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            long deadline = System.nanoTime() + LIMIT.toNanos();
            while (!ends.entrySet().stream()
                    .allMatch(end -> consumer.position(end.getKey(), LIMIT) >= end.getValue())) {
                if (System.nanoTime() > deadline) {
                    throw new IllegalStateException(topic + " was not read to its end in " + LIMIT);
                }
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    kinds.merge(record(record, partitions.size()), 1, Integer::sum);
                    if (record.key() != null) {
                        Integer before = partitionOfKey.put(text(record.key()), record.partition());
                        require(record, before == null || before == record.partition(), "its key is on two partitions");
                    }
                }
            }
        }
        System.out.println(topic + ": " + kinds);
    }

    /** Checks one record and returns its kind. */
    private String record(ConsumerRecord<byte[], byte[]> record, int partitions) throws IOException {
        Map<String, String> headers = new TreeMap<>();
        for (Header header : record.headers()) {
            String before = headers.put(header.key(), text(header.value()));
            require(record, before == null, "header " + header.key() + " stands twice");
        }
        byte[] key = record.key();
        if (key != null) {
            require(record, BuiltInPartitioner.partitionForKey(key, partitions) == record.partition(),
                    "Java's partitioner would choose another partition");
        }
        String reason = headers.get("cmc-dead-letter-reason");
        if (reason != null) {
            required(record, headers.keySet(), "dead-letter-headers.schema.json");
            return "dead letter, " + reason;
        }
        if ((TYPE + "inbound.attachment").equals(headers.get("ce_type"))) {
            // Its value is a part of a file, not JSON.
            required(record, headers.keySet(), "inbound-attachment-headers.schema.json");
            return "part of an attachment";
        }
        required(record, headers.keySet(), "event-headers.schema.json");
        require(record, "1.0".equals(headers.get("ce_specversion")), "ce_specversion");
        require(record, "application/json".equals(headers.get("content-type")), "content-type");
        boolean isSubject = key != null && text(key).codePoints().noneMatch(CheckRecords::isInNoAttribute);
        require(record, Objects.equals(headers.get("ce_subject"), isSubject ? text(key) : null),
                "ce_subject is not the key");
        JsonNode value = JSON.readTree(record.value());
        TreeSet<String> members = new TreeSet<>();
        value.fieldNames().forEachRemaining(members::add);
        required(record, members, "event.schema.json");
        String type = value.path("event_type").asText();
        require(record, (TYPE + type).equals(headers.get("ce_type")), "ce_type is not that of the value");
        return type + ", status " + value.path("status").asText("none");
    }

    /** Checks that all members that a schema requires are present. */
    private void required(ConsumerRecord<byte[], byte[]> record, Set<String> have, String schema)
            throws IOException {
        for (JsonNode name : JSON.readTree(schemas.resolve(schema).toFile()).path("required")) {
            require(record, have.contains(name.asText()), name.asText() + " is missing");
        }
    }

    private void require(ConsumerRecord<byte[], byte[]> record, boolean holds, String otherwise) {
        if (!holds) {
            broken.add(record.topic() + "/" + record.partition() + "/" + record.offset() + ": " + otherwise);
        }
    }

    /** Decodes strict UTF-8. */
    private static String text(byte[] bytes) throws CharacterCodingException {
        return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString();
    }

    /** Whether CloudEvents forbids the character in attributes: control characters and noncharacters. */
    private static boolean isInNoAttribute(int c) {
        return Character.isISOControl(c) || (c & 0xFFFE) == 0xFFFE || c >= 0xFDD0 && c <= 0xFDEF;
    }
}
